import json
from collections.abc import Callable
from pathlib import Path

import pytest

from retnet.cli.status import FAILED, OK
from retnet.evaluate import score_files
from retnet.hub import load

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, " * 9, encoding="utf-8")
    return path


def test_scores_are_the_librarys(run: Run, checkpoint: Path, text: Path) -> None:
    status, out, _ = run("evaluate", checkpoint, text, "--seq-len", 16)
    assert status == OK
    for seq_len, name in ((None, "carried along"), (16, "16 tokens")):
        score = score_files(*load(checkpoint), [text], seq_len=seq_len)
        [row] = [line for line in out.splitlines() if name in line]
        assert f"{score.perplexity:.2f}" in row
        assert f"{score.bits_per_byte:.4f}" in row


def test_without_windows_there_is_one_score(run: Run, checkpoint: Path, text: Path) -> None:
    _, out, _ = run("evaluate", checkpoint, text, text.parent / "text.txt")
    assert "carried along" in out
    assert "tokens │" not in out.replace("tokens │ bytes", "")


def test_no_files_and_missing_files_are_refused(run: Run, checkpoint: Path) -> None:
    status, _, err = run("evaluate", checkpoint)
    assert status == FAILED
    assert "there is no file to read; name text files" in err
    status, _, err = run("evaluate", checkpoint, "nowhere.txt")
    assert status == FAILED
    assert err == "error: nowhere.txt does not exist; give text files, or folders of them\n"


def test_figures_and_report_are_written(run: Run, checkpoint: Path, text: Path) -> None:
    figures, report = text.parent / "figures.json", text.parent / "report.html"
    status, out, err = run(
        "evaluate", checkpoint, text, "--words", "--contexts", 8, 16,
        "--json", figures, "--report", report,
    )  # fmt: skip
    assert status == OK
    assert "per word" in out
    assert "Does more context help?" in out
    data = json.loads(figures.read_text(encoding="utf-8"))
    assert data["contexts"]["contexts"] == [8, 16]
    assert data["name"] == str(checkpoint)
    assert "<h2>Does more context help?</h2>" in report.read_text(encoding="utf-8")
    assert f"the report is {report}" in err


def test_a_report_of_an_unknown_kind_is_refused_at_once(
    run: Run, checkpoint: Path, text: Path
) -> None:
    status, out, err = run("evaluate", checkpoint, text, "--report", "report.pdf")
    assert (status, out) == (FAILED, "")
    assert "must end in .html or .md" in err
