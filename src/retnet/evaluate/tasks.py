"""Questions with choices, and last words, from files that lie here.

A task is a file, NAME.jsonl or NAME.jsonl.gz, of one item a line with the data set's own fields.
What becomes of an item follows the task of the same name in lm-evaluation-harness 0.4.13, so that
scores can be compared with those published.
"""

import gzip
import io
import json
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lm_eval.api.model import LM

Item = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """How a data set is asked.

    Attributes:
        kind: `choice`: which of several continuations of one text; `partial`: which of several
            texts before one continuation, of which alone the probability counts; `word`: the last
            word of a text.
        read: an item's fields -> `query`, `choices` and `gold`; `contexts`, `continuation` and
            `gold`; or `query` and `word`.
        normalized: whether the share of right choices is also told for log-probabilities divided
            by the length of the choice in characters (`acc_norm`).
        chance: share of right choices of who guesses.
    """

    kind: Literal["choice", "partial", "word"]
    read: Callable[[Item], Item]
    normalized: bool = False
    chance: float = 0.5


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One number of one task.

    Attributes:
        task: its name.
        metric: `acc`, `acc_norm` or `perplexity`.
        value: shares are from 0 to 1.
        standard_error: of the value.
        items: that were asked.
        shots: examples in front of each.
        chance: see `Task`; None for a perplexity.
    """

    task: str
    metric: str
    value: float
    standard_error: float
    items: int
    shots: int
    chance: float | None


def _hellaswag(item: Item) -> Item:
    context = f"{item['activity_label']}: {item['ctx_a']} {item['ctx_b'].capitalize()}"
    return {
        "query": _plain_wikihow(context),
        "choices": [_plain_wikihow(ending) for ending in item["endings"]],
        "gold": int(item["label"]),
    }


def _plain_wikihow(text: str) -> str:
    """Without the marks that WikiHow's pages left in HellaSwag."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _piqa(item: Item) -> Item:
    return {
        "query": f"Question: {item['goal']}\nAnswer:",
        "choices": [item["sol1"], item["sol2"]],
        "gold": int(item["label"]),
    }


def _boolq(item: Item) -> Item:
    return {
        "query": f"{item['passage']}\nQuestion: {item['question']}?\nAnswer:",
        "choices": ["no", "yes"],
        "gold": int(item["answer"] if "answer" in item else item["label"]),
    }


def _copa(item: Item) -> Item:
    word = {"cause": "because", "effect": "therefore"}[item["question"]]
    choices = (item["choice1"], item["choice2"])
    return {
        "query": f"{item['premise'].strip()[:-1]} {word}",
        # the blank in front is the harness's own, beside the one that it puts before all choices
        "choices": [f" {choice[0].lower()}{choice[1:]}" for choice in choices],
        "gold": int(item["label"]),
    }


def _winogrande(item: Item) -> Item:
    before, after = item["sentence"].split("_", 1)
    return {
        "contexts": [before + item["option1"], before + item["option2"]],
        "continuation": after.strip(),
        "gold": int(item["answer"]) - 1,
    }


def _wsc273(item: Item) -> Item:
    return {
        "contexts": list(item["context_options"]),
        "continuation": item["continuation"],
        "gold": int(item["gold"]),
    }


def _lettered(item: Item, query: str) -> Item:
    """Choices as a list with the number of the right one, or with letters and the right letter."""
    choices = item["choices"]
    if isinstance(choices, dict):
        gold = choices["label"].index(item["answerKey"].strip())
        return {"query": query, "choices": list(choices["text"]), "gold": gold}
    return {"query": query, "choices": list(choices), "gold": int(item["label"])}


def _arc(item: Item) -> Item:
    return _lettered(item, f"Question: {item['question']}\nAnswer:")


def _openbookqa(item: Item) -> Item:
    return _lettered(item, item["question_stem"])


def _sciq(item: Item) -> Item:
    wrong = [item[f"distractor{number}"] for number in (1, 2, 3)]
    return {
        "query": f"{item['support'].lstrip()}\nQuestion: {item['question']}\nAnswer:",
        "choices": [*wrong, item["correct_answer"]],
        "gold": 3,
    }


def _lambada(item: Item) -> Item:
    if "text" in item:
        query, _, word = item["text"].rpartition(" ")
        return {"query": query, "word": word}
    return {"query": item["context"], "word": item["target"]}


TASKS = {
    "hellaswag": Task(kind="choice", read=_hellaswag, normalized=True, chance=0.25),
    "boolq": Task(kind="choice", read=_boolq),
    "copa": Task(kind="choice", read=_copa),
    "piqa": Task(kind="choice", read=_piqa, normalized=True),
    "wsc273": Task(kind="partial", read=_wsc273),
    "winogrande": Task(kind="partial", read=_winogrande),
    "arc_easy": Task(kind="choice", read=_arc, normalized=True, chance=0.25),
    "arc_challenge": Task(kind="choice", read=_arc, normalized=True, chance=0.25),
    "sciq": Task(kind="choice", read=_sciq, normalized=True, chance=0.25),
    "openbookqa": Task(kind="choice", read=_openbookqa, normalized=True, chance=0.25),
    "lambada_openai": Task(kind="word", read=_lambada, chance=0.0),
}
"""By name, those of RetNet's table 3 (but StoryCloze, whose text is not to be had) first."""


def task_files(folder: Path) -> dict[str, Path]:
    """The files of a folder that are tasks, by name, in the order of `TASKS`.

    Raises:
        ValueError: there is none.
    """
    names = {name: [f"{name}.jsonl", f"{name}.jsonl.gz"] for name in TASKS}
    found = {
        name: folder / file for name, files in names.items() for file in files
        if (folder / file).is_file()
    }  # fmt: skip
    if not found:
        raise ValueError(
            f"{folder} holds no task: no file NAME.jsonl or NAME.jsonl.gz, where NAME is one of "
            f"{', '.join(TASKS)}; put the data sets there, one item a line"
        )
    return found


def read_items(name: str, file: Path) -> list[Item]:
    """The items of a task's file, as the prompts want them.

    Raises:
        ValueError: a line is not an item of that data set.
    """
    items = []
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                items.append(TASKS[name].read(json.loads(line)))
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"{file}, line {number}: no item of {name} ({type(error).__name__}: {error}); "
                    "each line must be a JSON object with the fields of that data set"
                ) from error
    if not items:
        raise ValueError(f"{file} is empty; put the items of {name} there, one a line")
    return items


def harness_config(name: str, file: Path, shots: int = 0) -> dict[str, Any]:
    """The task as lm-evaluation-harness wants it, for our models or any others.

    Args:
        name: among `TASKS`.
        file: its items.
        shots: examples in front of each item: the first of the file, but the item itself.
    """
    task = TASKS[name]

    def items(**_: Any) -> Any:
        from datasets import Dataset

        return {"test": Dataset.from_list(read_items(name, file))}

    fields: dict[str, Any] = {
        "choice": {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"},
        "partial": {
            "doc_to_text": "gold",
            "doc_to_choice": "contexts",
            "doc_to_target": "continuation",
        },
        "word": {"doc_to_text": "query", "doc_to_target": " {{word}}"},
    }[task.kind]
    metrics = ["acc"] + ["acc_norm"] * task.normalized + ["perplexity"] * (task.kind == "word")
    return fields | {
        "task": name,
        "custom_dataset": items,
        "test_split": "test",
        "fewshot_split": "test",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": shots,
        "output_type": "loglikelihood" if task.kind == "word" else "multiple_choice",
        "metric_list": [
            {
                "metric": metric,
                "aggregation": "perplexity" if metric == "perplexity" else "mean",
                "higher_is_better": metric != "perplexity",
            }
            for metric in metrics
        ],
        "metadata": {"version": 1.0},
    }


def score_tasks(
    lm: "LM",
    files: dict[str, Path],
    *,
    shots: int = 0,
    limit: int | None = None,
) -> list[TaskScore]:
    """Ask a model the items of some tasks, through the harness and without any network.

    Args:
        lm: a `retnet.evaluate.harness.RetNetLM`, or any other model of the harness.
        files: name of each task and its file, as `task_files` finds them.
        shots: examples in front of each item.
        limit: items of each task; None: all.

    Raises:
        ModuleNotFoundError: `retnet[eval]` is not installed.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    evaluate: Any = simple_evaluate  # its decorator hides what it takes
    with redirect_stdout(io.StringIO()):  # where it tells that it resamples
        got = evaluate(
            lm,
            tasks=[harness_config(name, file, shots) for name, file in files.items()],
            limit=limit,
            bootstrap_iters=1000,
            log_samples=False,
            task_manager=TaskManager(include_defaults=False),
        )
    scores = []
    for name in files:
        found = got["results"][name]
        for metric in ("acc", "acc_norm", "perplexity"):
            if f"{metric},none" in found:
                scores.append(
                    TaskScore(
                        task=name,
                        metric=metric,
                        value=float(found[f"{metric},none"]),
                        standard_error=float(found[f"{metric}_stderr,none"]),
                        items=int(got["n-samples"][name]["effective"]),
                        shots=shots,
                        chance=None if metric == "perplexity" else TASKS[name].chance,
                    )
                )
    return scores


def mean_accuracy(scores: Sequence[TaskScore]) -> tuple[float, float]:
    """Mean of `acc` over tasks, as in RetNet's table 3, and its standard error."""
    shares = [score for score in scores if score.metric == "acc"]
    errors = sum(score.standard_error**2 for score in shares) ** 0.5
    return sum(score.value for score in shares) / len(shares), errors / len(shares)
