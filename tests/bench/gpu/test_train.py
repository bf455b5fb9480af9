from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu.benches import make_bench
from retnet.bench.gpu import train
from retnet.bench.gpu.bench import run_step
from retnet.bench.gpu.cases import QUICK_TRAINS
from retnet.bench.gpu.models import WHO
from retnet.bench.gpu.train import bench_train, train_part

METRICS = {"step_ms", "tokens_per_s", "share_of_matmul", "peak_gib", "first_call_s"}


def test_a_training_step_is_measured_with_retention_and_with_attention(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    for step in train_part(quick=True).steps:
        run_step(bench, step)
    assert bench.session.failed == []
    records = bench.session.recorder.records
    assert {(r.case["by"], r.case["checkpointing"]) for r in records} == {
        (who, True) for who in WHO
    }
    assert {r.metric for r in records} == METRICS


def needing(monkeypatch: pytest.MonkeyPatch, fits: int) -> list[int]:
    """As if no more rows than these did fit; what was tried."""
    tried: list[int] = []
    measure = train._measure

    def scarce(*given: Any) -> train.Found:
        tried.append(given[-1])
        if fits < given[-1]:
            raise torch.OutOfMemoryError("no memory")
        return measure(*given)

    monkeypatch.setattr(train, "_measure", scarce)
    return tried


def test_the_first_number_of_rows_that_fits_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = needing(monkeypatch, fits=2)
    bench = make_bench(tmp_path)
    case = train.TrainCase(**{**vars(QUICK_TRAINS[0]), "rows": (8, 4, 2, 1)})
    bench_train(bench, case, WHO[0])
    assert tried == [8, 4, 2]
    assert {r.case["B"] for r in bench.session.recorder.records} == {2}


def test_what_does_not_fit_with_any_number_of_rows_is_recorded_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needing(monkeypatch, fits=0)
    bench = make_bench(tmp_path)
    bench_train(bench, QUICK_TRAINS[0], WHO[1])
    [record] = bench.session.recorder.records
    assert (record.metric, record.spread.median) == ("out_of_memory", 1.0)


def test_other_errors_are_no_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(train, "_measure", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        bench_train(make_bench(tmp_path), QUICK_TRAINS[0], WHO[0])
