import gzip
import json
from pathlib import Path

import pytest

from retnet.evaluate.tasks import TASKS, TaskScore, mean_accuracy, read_items, task_files

ITEMS = {
    "hellaswag": (
        {
            "activity_label": "Sport",
            "ctx_a": "[header] A man runs. [title] Start",
            "ctx_b": "he",
            "endings": ["jumps  up.", "[step] sits.", "x", "y"],
            "label": "1",
        },
        {
            "query": "Sport: A man runs.. Start He",
            "choices": ["jumps up.", " sits.", "x", "y"],
            "gold": 1,
        },
    ),
    "piqa": (
        {"goal": "Cut it", "sol1": "saw", "sol2": "glue", "label": 0},
        {"query": "Question: Cut it\nAnswer:", "choices": ["saw", "glue"], "gold": 0},
    ),
    "boolq": (
        {"passage": "It rains.", "question": "is it wet", "answer": True},
        {"query": "It rains.\nQuestion: is it wet?\nAnswer:", "choices": ["no", "yes"], "gold": 1},
    ),
    "copa": (
        {"premise": "He fell.", "question": "cause", "choice1": "It Hurt.", "choice2": "He slid.",
         "label": 1},
        {"query": "He fell because", "choices": [" it Hurt.", " he slid."], "gold": 1},
    ),
    "winogrande": (
        {"sentence": "A likes B because _ is kind.", "option1": "A", "option2": "B", "answer": "2"},
        {"contexts": ["A likes B because A", "A likes B because B"], "continuation": "is kind.",
         "gold": 1},
    ),
    "wsc273": (
        {"context_options": ["It is the cup", "It is the box"], "continuation": "is big.",
         "gold": 0},
        {"contexts": ["It is the cup", "It is the box"], "continuation": "is big.", "gold": 0},
    ),
    "arc_easy": (
        {"question": "Why?", "choices": ["a", "b", "c"], "label": 2},
        {"query": "Question: Why?\nAnswer:", "choices": ["a", "b", "c"], "gold": 2},
    ),
    "arc_challenge": (
        {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["1", "2"]},
         "answerKey": "2"},
        {"query": "Question: Why?\nAnswer:", "choices": ["a", "b"], "gold": 1},
    ),
    "sciq": (
        {"support": " Ice melts.", "question": "What melts?", "distractor1": "a",
         "distractor2": "b", "distractor3": "c", "correct_answer": "ice"},
        {"query": "Ice melts.\nQuestion: What melts?\nAnswer:", "choices": ["a", "b", "c", "ice"],
         "gold": 3},
    ),
    "openbookqa": (
        {"question_stem": "The sun is", "choices": {"text": ["hot", "wet"], "label": ["A", "B"]},
         "answerKey": "A"},
        {"query": "The sun is", "choices": ["hot", "wet"], "gold": 0},
    ),
    "lambada_openai": (
        {"text": "He went to the door"},
        {"query": "He went to the", "word": "door"},
    ),
}  # fmt: skip


def write(folder: Path, name: str, items: list[dict]) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", TASKS)
def test_items_become_the_harness_prompts(tmp_path: Path, name: str) -> None:
    item, expected = ITEMS[name]
    assert read_items(name, write(tmp_path, name, [item])) == [expected]


def test_a_context_and_its_word_may_be_apart(tmp_path: Path) -> None:
    file = write(tmp_path, "lambada_openai", [{"context": "to the", "target": "door"}])
    assert read_items("lambada_openai", file) == [{"query": "to the", "word": "door"}]


def test_files_of_a_folder_are_found_by_name_packed_or_not(tmp_path: Path) -> None:
    write(tmp_path, "piqa", [ITEMS["piqa"][0]])
    write(tmp_path, "other", [{}])
    packed = tmp_path / "boolq.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(ITEMS["boolq"][0]).encode()))
    found = task_files(tmp_path)
    assert list(found) == ["boolq", "piqa"]
    assert read_items("boolq", found["boolq"])[0]["gold"] == 1


def test_folders_without_tasks_and_lines_without_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no task: no file NAME\.jsonl"):
        task_files(tmp_path)
    file = write(tmp_path, "piqa", [ITEMS["piqa"][0], {"goal": "x"}])
    with pytest.raises(ValueError, match=r"line 2: no item of piqa \(KeyError: 'sol1'\)"):
        read_items("piqa", file)
    with pytest.raises(ValueError, match="is empty; put the items of piqa there"):
        read_items("piqa", write(tmp_path, "piqa", []))


def test_the_mean_is_over_tasks_whatever_their_size() -> None:
    def score(metric: str, value: float, error: float, items: int) -> TaskScore:
        return TaskScore(
            task="x", metric=metric, value=value, standard_error=error, items=items, shots=0,
            chance=0.5,
        )  # fmt: skip

    scores = [
        score("acc", 0.5, 0.03, 9),
        score("acc_norm", 1.0, 0.0, 9),
        score("acc", 0.7, 0.04, 999),
    ]
    assert mean_accuracy(scores) == pytest.approx((0.6, 0.025))
