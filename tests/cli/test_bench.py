from collections.abc import Callable
from pathlib import Path

from retnet.bench import BENCHES
from retnet.cli.status import FAILED, OK

Run = Callable[..., tuple[int, str, str]]


def test_help_names_every_bench(run: Run) -> None:
    _, out, _ = run("bench", "--help")
    for name in BENCHES:
        assert f"\n  {name} " in out


def test_a_bench_prints_its_table_and_keeps_its_records(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("bench", "forms", "--quick", "--out", tmp_path)
    assert status == OK
    assert "float64" in out
    assert list(tmp_path.rglob("*.jsonl"))


def test_an_unknown_bench_names_all(run: Run, tmp_path: Path) -> None:
    status, _, err = run("bench", "speed", "--out", tmp_path)
    assert status == FAILED
    assert f"choose one of {', '.join(BENCHES)}" in err
