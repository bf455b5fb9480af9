import json
from dataclasses import replace
from pathlib import Path

import pytest

from retnet.bench.machine import Provenance
from retnet.bench.record import Gate, GateFailed, Record, Recorder, latest, read_records
from retnet.bench.timing import Spread

SOURCE = Provenance(
    device="A CPU, 2 cores",
    threads=2,
    torch="2.13.0",
    python="3.11.7",
    commit="abc1234",
    dirty=False,
)
PASSED, FAILED = Gate(True, "right"), Gate(False, "o errs by 1, over its budget 0")
CASE = {"T": 8, "dtype": "float32"}
SPREAD = Spread(1.5, 1.25, 2.0, 7)


def recorder(folder: Path, source: Provenance = SOURCE) -> Recorder:
    return Recorder(folder, source, quick=False)


def test_records_read_back_as_they_were_written(tmp_path: Path) -> None:
    made = recorder(tmp_path)
    made.add("op/retention", CASE, {"fwd_ms": SPREAD, "fwd_gflops": Spread.of([2.0])}, PASSED)
    made.add("decode", {"context": 1000}, {"token_ms": SPREAD}, PASSED)
    assert sorted(read_records(tmp_path), key=lambda r: r.metric) == sorted(
        made.records, key=lambda r: r.metric
    )
    assert (tmp_path / "op" / "retention.jsonl").exists()


def test_a_line_has_the_fields_of_the_style_page(tmp_path: Path) -> None:
    recorder(tmp_path).add("b", CASE, {"fwd_ms": SPREAD}, PASSED)
    (text,) = (tmp_path / "b.jsonl").read_text().splitlines()
    line = json.loads(text)
    assert line.pop("utc").endswith("+00:00")
    assert line == {
        "schema": 1,
        "bench": "b",
        "T": 8,
        "dtype": "float32",
        "metric": "fwd_ms",
        "median": 1.5,
        "p20": 1.25,
        "p80": 2.0,
        "n": 7,
        "gate": "passed",
        "quick": False,
        "device": "A CPU, 2 cores",
        "threads": 2,
        "torch": "2.13.0",
        "python": "3.11.7",
        "commit": "abc1234",
        "dirty": False,
    }


def test_records_are_appended_and_old_lines_never_change(tmp_path: Path) -> None:
    recorder(tmp_path).add("b", CASE, {"fwd_ms": SPREAD}, PASSED)
    before = (tmp_path / "b.jsonl").read_bytes()
    recorder(tmp_path).add("b", CASE, {"fwd_ms": SPREAD}, PASSED)
    after = (tmp_path / "b.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(after.splitlines()) == 2


def test_a_failed_gate_writes_no_record(tmp_path: Path) -> None:
    made = recorder(tmp_path)
    with pytest.raises(GateFailed, match="o errs by 1, over its budget 0"):
        made.add("b", CASE, {"fwd_ms": SPREAD}, FAILED)
    assert made.records == []
    assert list(tmp_path.iterdir()) == []


def test_a_case_cannot_shadow_a_field_of_the_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="case field median, torch is a record's own"):
        recorder(tmp_path).add("b", {"torch": 1, "median": 2}, {"fwd_ms": SPREAD}, PASSED)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"schema": 2}', r"b\.jsonl:2: .* is no record of schema 1"),
        ('{"schema": 1, "bench": "b"}', r"b\.jsonl:2: .* lacks commit, device"),
        ("{", r"b\.jsonl:2: "),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    recorder(tmp_path).add("b", CASE, {"fwd_ms": SPREAD}, PASSED)
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path)


def test_figures_keep_six_digits(tmp_path: Path) -> None:
    made = recorder(tmp_path)
    made.add("b", CASE, {"fwd_ms": Spread.of([1.23456789])}, PASSED)
    assert made.records[0].spread.median == 1.23457
    assert read_records(tmp_path) == made.records


def test_the_latest_record_of_a_case_counts(tmp_path: Path) -> None:
    made = recorder(tmp_path)
    for context, ms in ((1, 1.0), (2, 2.0), (1, 3.0)):
        made.add("b", {"context": context}, {"token_ms": Spread.of([ms])}, PASSED)
    found = {r.case["context"]: r.spread.median for r in latest(made.records, "context")}
    assert found == {1: 3.0, 2: 2.0}


def test_figures_of_two_machines_never_stand_together(tmp_path: Path) -> None:
    other = recorder(tmp_path, replace(SOURCE, device="another CPU"))
    other.add("b", {"context": 1}, {"token_ms": SPREAD}, PASSED)
    recorder(tmp_path).add("b", {"context": 2}, {"token_ms": SPREAD}, PASSED)
    found: list[Record] = latest(read_records(tmp_path), "context")
    assert [(r.case["context"], r.source.device) for r in found] == [(2, "A CPU, 2 cores")]
