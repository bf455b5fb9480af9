import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path

import pytest

from retnet.data import Tokenizer
from retnet.evaluate import score_files
from retnet.evaluate.context import score_contexts
from retnet.evaluate.evaluation import Evaluation, Wanted, evaluate
from retnet.evaluate.memory import state_grows
from retnet.evaluate.probes import PROBES, score_probe
from retnet.evaluate.report import write_report
from retnet.evaluate.sections import about, sections
from retnet.evaluate.tasks import TaskScore
from retnet.evaluate.text import find_texts, read_files
from retnet.model import Decoder, preset, rival

BASE = preset("small-1m", vocab_size=257)
ONE = replace(BASE, layers=(replace(BASE.layers[0], repeat=1),))
MODEL = Decoder(ONE).eval()
TEXT = "".join(chr(97 + (7 * i * i + i // 3) % 26) for i in range(300)) + " and\nso on"

TASKS = [
    TaskScore(task="piqa", metric="acc", value=0.8, standard_error=0.05, items=64, shots=1,
              chance=0.5),
    TaskScore(task="copa", metric="acc", value=0.4, standard_error=0.1, items=25, shots=1,
              chance=0.5),
    TaskScore(task="lambada_openai", metric="perplexity", value=1234.5, standard_error=9.0,
              items=25, shots=1, chance=None),
]  # fmt: skip


@contextmanager
def bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    assert what
    assert unit
    yield lambda *_: None


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def found(file: Path) -> Evaluation:
    wanted = Wanted(
        files=(str(file),), seq_len=32, stride=16, words=True, contexts=(8, 16), memory=24,
        probes=("copying", "even-pairs"),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:  # fewer examples are as good here
        few = partial(score_probe, batch_size=2, batches=2)
        patch.setattr("retnet.evaluate.evaluation.score_probe", few)
        one = evaluate(MODEL, Tokenizer.bytes(), wanted, name="runs/<one>", bar=bar)
    return replace(one, tasks=TASKS)


def test_all_parts_are_those_of_their_own_functions(found: Evaluation, file: Path) -> None:
    carried, windows = found.text
    score = score_files(MODEL, Tokenizer.bytes(), [file])
    assert carried.score == score
    assert (carried.memory, windows.memory) == ("carried along", "32 tokens, a window every 16")
    assert carried.word_perplexity == score.perplexity_per(5)  # the end of the line counts
    stream = read_files(Tokenizer.bytes(), [file])
    assert found.contexts == score_contexts(MODEL, stream, contexts=(8, 16), segment=4)
    assert {row.name for row in found.probes} == {"copying", "even-pairs"}
    assert [row.length for row in found.probes[:4]] == list(PROBES["copying"].test_lengths)
    assert len(found.repeats) == 1
    assert [score.length for score in found.familiar] == [24] * len(found.familiar)
    assert len(found.needles) == 5
    assert {memory.layer for memory in found.heads} == {0}


def test_json_holds_all_of_it_and_what_follows(found: Evaluation) -> None:
    data = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert data["schema"] == 1
    assert data["text"][0]["score"]["perplexity"] == found.text[0].score.perplexity
    assert data["text"][1]["memory"] == "32 tokens, a window every 16"
    assert data["contexts"]["verdict"] == found.contexts.verdict  # type: ignore[union-attr]
    assert data["probes"][0]["score"]["accuracy"] == found.probes[0].score.accuracy
    assert data["heads"][0]["decay_tokens"] == found.heads[0].decay_tokens
    assert data["tasks"][2]["chance"] is None
    endless = replace(found, heads=[replace(found.heads[0], decay=1.0)])
    assert endless.as_json()["heads"][0]["decay_tokens"] is None


def test_sections_say_what_was_found(found: Evaluation) -> None:
    by_key = {section.key: section for section in sections(found)}
    assert list(by_key) == [
        *("text", "contexts", "repeats", "familiar", "needles", "heads", "probes", "tasks")
    ]
    assert by_key["familiar"].rows[0][0] == "new in the passage"
    for section in by_key.values():
        assert all(len(row) == len(section.columns) for row in section.rows)
        assert section.notes
    tasks = by_key["tasks"]
    assert ("piqa", "acc", "80.0%", "5.0%", "50%", "64") in tasks.rows
    assert ("lambada_openai", "perplexity", "1,234", "9", "", "25") in tasks.rows
    assert tasks.rows[-1][:3] == ("mean", "acc", "60.0%")
    assert "Above chance (95 %, acc): piqa." in tasks.notes
    assert "1 example in front" in tasks.notes[0]
    assert found.contexts is not None
    assert found.contexts.verdict in by_key["contexts"].notes[0]
    only = replace(
        found, text=[], contexts=None, repeats=[], familiar=[], needles=[], heads=[], probes=[]
    )
    assert [section.key for section in sections(only)] == ["tasks"]


def test_html_is_one_file_with_its_pictures(found: Evaluation, tmp_path: Path) -> None:
    [path] = write_report(found, tmp_path / "report.html")
    html = path.read_text(encoding="utf-8")
    assert "Evaluation of runs/&lt;one&gt;" in html
    assert html.count("<img ") == html.count("data:image/png;base64,") == 6
    assert "http" not in re.sub(r"base64,[^\"]*", "", html)
    for section in sections(found):
        assert f"<h2>{escape(section.title)}</h2>" in html
    assert html.count("<table>") == 8


def test_markdown_has_its_pictures_beside_it(found: Evaluation, tmp_path: Path) -> None:
    short = replace(found, heads=[], needles=[], repeats=[], familiar=[], probes=[], contexts=None)
    written = write_report(short, tmp_path / "report.md")
    assert [path.name for path in written] == ["report.md", "report.text.png", "report.tasks.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])
    text = written[0].read_text(encoding="utf-8")
    assert "![Tasks](report.tasks.png)" in text
    assert "| piqa | acc | 80.0% | 5.0% | 50% | 64 |" in text


def test_a_report_is_html_or_markdown(found: Evaluation, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report\.pdf\) must end in \.html or \.md"):
        write_report(found, tmp_path / "report.pdf")


def test_a_state_that_grows_is_told(found: Evaluation) -> None:
    assert "however long it is" in about(found)
    grows = Decoder(rival(ONE, "attention", num_heads=2))
    window = Decoder(rival(ONE, "attention", num_heads=2, window=8))
    assert [state_grows(model) for model in (MODEL, grows, window)] == [False, True, False]
    assert "more with every token" in about(replace(found, state_grows=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "there is no file to read"),
        ({"contexts": (1, 2), "probes": ("parity",)}, "there is no file to read"),
        ({"probes": ("juggling",)}, '"juggling" is no probe; choose among mqar'),
        ({"files": ("x",), "shots": 2}, r"shots \(2\) are of tasks"),
        ({"files": ("x",), "beside_hf": True}, r"beside_hf compares scores of tasks"),
        ({"tasks": Path("x"), "limit": 0}, r"limit \(0\) 1; raise them"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Wanted(**fields)


def test_probes_and_tasks_are_refused_before_the_work(tmp_path: Path) -> None:
    for wanted, message in (
        (Wanted(probes=("mqar",)), r"vocab_size \(257\) is below that of the probe mqar \(8192\)"),
        (Wanted(tasks=tmp_path), "holds no task"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(MODEL, Tokenizer.bytes(), wanted, name="one", bar=bar)


def test_without_the_harness_tasks_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("retnet.evaluate.evaluation.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'retnet\[eval\]'"):
        evaluate(MODEL, Tokenizer.bytes(), Wanted(tasks=tmp_path), name="one", bar=bar)


def test_documents_are_cut_where_asked(file: Path) -> None:
    assert len(list(find_texts([file], split_on="so"))) == 2
