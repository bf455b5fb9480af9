import json
from collections.abc import Callable
from pathlib import Path

import pytest

from retnet.cli.runs import _age, _count
from retnet.cli.status import FAILED, OK

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs, one of which is still on its way."""
    for name, rate, step, bits in (
        ("a", 0.1, 10, 2.0),
        ("group/b", 0.2, 10, 1.0),
        ("c", 0.1, 4, 0),
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "run.toml").write_text(f"[train]\nsteps = 10\nlearning_rate = {rate}\n")
        lines = [{"step": step, "tokens": 1000 * step, "loss": 3.0, "mfu": 0.25}]
        if bits:
            scored = {"valid_loss": 2.0, "valid_bits_per_byte_carried": bits}
            lines.append({"step": step, "tokens": 1000 * step, **scored})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    return tmp_path


def test_a_pipe_gets_one_plain_line_per_run_the_best_first(run: Run, runs: Path) -> None:
    status, out, err = run("runs", runs)
    assert status == OK
    header, *rows = (line.split() for line in out.splitlines())
    assert " ".join(header) == "run size tokens step loss bits tokens/s of peak age learning_rate"
    assert [row[:8] for row in rows] == [
        ["group/b", "-", "10k", "10", "done", "3.000", "1.000", "-"],
        ["a", "-", "10k", "10", "done", "3.000", "2.000", "-"],
        ["c", "-", "4k", "4/10", "3.000", "-", "-", "25%"],
    ]
    assert [row[-1] for row in rows] == ["0.2", "0.1", "0.1"]
    assert "\x1b" not in out
    assert (runs / "runs.png").read_bytes().startswith(b"\x89PNG")
    assert f"curves in {runs / 'runs.png'}" in err


def test_a_narrow_terminal_gets_settings_in_a_table_of_their_own(
    run: Run, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "72")
    _, narrow, _ = run("runs", runs)
    monkeypatch.setenv("COLUMNS", "100")
    _, wide, _ = run("runs", runs)
    assert "\x1b[1m" in narrow  # the header stands out
    assert len(narrow.splitlines()) == 2 * 4 + 1
    assert max(map(len, narrow.splitlines())) < 90
    assert len(wide.splitlines()) == 4


def test_json_is_read_by_programs(run: Run, runs: Path) -> None:
    status, out, _ = run("runs", runs, "--json", "--plot", runs / "curves.png")
    records = json.loads(out)
    assert status == OK
    assert [record["name"] for record in records] == ["group/b", "a", "c"]
    assert records[0]["valid_bits_per_byte_carried"] == 1.0
    assert records[2] | {"path": "", "updated": ""} == {
        "name": "c",
        "path": "",
        "parameters": None,
        "tokens": 4000,
        "step": 4,
        "steps": 10,
        "finished": False,
        "loss": 3.0,
        "valid_bits_per_byte_carried": None,
        "tokens_per_s": None,
        "mfu": 0.25,
        "updated": "",
        "differs": {"learning_rate": 0.1},
    }
    assert (runs / "curves.png").exists()
    assert not (runs / "runs.png").exists()


def test_a_damaged_run_is_left_out_and_named(run: Run, runs: Path) -> None:
    (runs / "a" / "metrics.jsonl").write_text("nonsense\n")
    status, out, err = run("runs", runs)
    assert status == OK
    assert len(out.splitlines()) == 3
    assert "left out: " in err
    assert "metrics.jsonl, line 1 ('nonsense') must be a JSON object" in err


def test_nothing_but_damaged_runs_is_refused(run: Run, runs: Path) -> None:
    for path in runs.rglob("run.toml"):
        path.write_text("nonsense")
    status, _, err = run("runs", runs)
    assert status == FAILED
    assert err.endswith("holds no run that can be read; see above\n")


def test_a_folder_without_runs_is_refused(run: Run, tmp_path: Path) -> None:
    status, out, err = run("runs", tmp_path)
    assert (status, out) == (FAILED, "")
    assert err.startswith(f"error: {tmp_path} holds no run")


def test_a_picture_that_cannot_be_written_is_named(run: Run, runs: Path) -> None:
    status, _, err = run("runs", runs, "--plot", runs / "none" / "x.png")
    assert status == FAILED
    assert "x.png cannot be written" in err
    assert "name another file with --plot" in err


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0"),
        (999, "999"),
        (1_000, "1k"),
        (181_234, "181k"),
        (999_960, "1M"),
        (18_912_000, "18.9M"),
        (3 * 10**9, "3G"),
        (2 * 10**12, "2T"),
    ],
)
def test_counts_have_three_figures(count: int | None, text: str) -> None:
    assert _count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3.0, "0 s"), (119.0, "119 s"), (120.0, "2 min"), (7300.0, "2 h"), (2e5, "2 days")],
)
def test_ages_have_one_unit(seconds: float, text: str) -> None:
    assert _age(seconds) == text
