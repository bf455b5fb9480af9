from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.gpu.benches import again, make_bench
from retnet.bench.gates import OpInputs
from retnet.bench.gpu import gates, ops
from retnet.bench.gpu.bench import Bench, Job, Step, run_step
from retnet.bench.gpu.cases import QUICK_OPS
from retnet.bench.gpu.gates import ours
from retnet.bench.gpu.ops import bench_op
from retnet.bench.gpu.rivals import FLA
from retnet.bench.record import GateFailed
from retnet.mixers.retention import log_decays
from retnet.types import Backend, Form

CASE = QUICK_OPS[0]


def rival(monkeypatch: pytest.MonkeyPatch, factor: float = 1.0) -> None:
    """Something beside ours that computes the same, or `factor` times as much."""
    inputs = OpInputs(*[torch.empty(1, 1, 1, 1)] * 4, log_decay=log_decays("pow2", CASE.H))

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return factor * ours(inputs, "torch")(q, k, v)

    monkeypatch.setattr(ops, "fla_retention", lambda _: (f"{FLA} 0.0.0", forward))


def by(bench: Bench) -> set[tuple[object, object]]:
    return {(r.case["by"], r.case["launch"]) for r in bench.session.recorder.records}


def test_rivals_stand_beside_ours_eager_and_as_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival(monkeypatch)
    bench = make_bench(tmp_path, again)
    bench_op(bench, CASE)
    assert bench.session.failed == []
    attention = f"attention (flash, torch {torch.__version__})"
    assert by(bench) == {
        (who, launch)
        for who in ("retnet", f"{FLA} 0.0.0", attention)
        for launch in ("eager", "graph")
    }
    records = bench.session.recorder.records
    ratios = {r.case["by"] for r in records if r.metric == "fwdbwd_time_over_retnet"}
    assert ratios == {f"{FLA} 0.0.0", attention}
    assert {r.case["by"] for r in records if r.metric == "first_call_s"} >= {"retnet"}
    assert {r.case.get("backend") for r in records if r.case["by"] == "retnet"} == {"torch"}


def test_a_rival_that_computes_something_else_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival(monkeypatch, factor=1.1)
    bench = make_bench(tmp_path)
    bench_op(bench, CASE)
    assert len(bench.session.failed) == 1
    assert "o differs from our kernel's by" in bench.session.failed[0]
    assert (f"{FLA} 0.0.0", "eager") not in by(bench)
    assert ("retnet", "eager") in by(bench)


def test_a_rival_that_breaks_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Tensor) -> Tensor:
        raise AssertionError("no such kernel")

    monkeypatch.setattr(ops, "fla_retention", lambda _: (f"{FLA} 0.0.0", broken))
    bench = make_bench(tmp_path)
    bench_op(bench, CASE)
    assert bench.session.failed == []
    assert any("AssertionError: no such kernel" in text for text in bench.session.skipped)
    assert ("retnet", "eager") in by(bench)


def test_kernels_that_did_not_compile_in_time_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival(monkeypatch)
    bench = make_bench(tmp_path)
    bench.late.add(Job(FLA, CASE.D_k, CASE.D_v))
    bench_op(bench, CASE)
    assert any("did not compile in time for D_k/D_v 16/32" in s for s in bench.session.skipped)
    assert (f"{FLA} 0.0.0", "eager") not in by(bench)
    bench.late.add(Job("retnet", CASE.D_k, CASE.D_v))
    with pytest.raises(GateFailed, match="our kernels for these heads did not compile in time"):
        bench_op(bench, CASE)


def test_what_cannot_be_recorded_as_a_graph_is_measured_eagerly(tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    bench = make_bench(tmp_path, refuse)  # type: ignore[arg-type]
    bench_op(bench, CASE)
    assert ("retnet", "eager") in by(bench)
    assert ("retnet", "graph") not in by(bench)
    assert any("retnet was not recorded as a CUDA graph" in s for s in bench.session.skipped)


@pytest.mark.parametrize("wrong", ["few tokens", "all tokens"])
def test_a_wrong_kernel_is_not_measured(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def double(inputs: OpInputs, backend: Backend, form: Form = "chunkwise") -> ops.Forward:
        right = ours(inputs, backend, form)
        few = inputs.q.shape[0] == 1 and inputs.q.shape[1] == 20
        if form != "chunkwise" or backend == "torch" or (wrong == "few tokens") != few:
            return right
        return lambda q, k, v: 2 * right(q, k, v)

    real = gates.retention

    def as_triton(*tensors: Tensor, form: Form, **_: Backend) -> tuple[Tensor, Tensor]:
        return real(*tensors, backend="torch", form=form)

    monkeypatch.setattr(gates, "SHORT", 20)
    monkeypatch.setattr(gates, "retention", as_triton)
    for module in (gates, ops):
        monkeypatch.setattr(module, "ours", double)
    bench = make_bench(tmp_path)
    object.__setattr__(bench, "backend", "triton")
    run_step(bench, Step("op", lambda bench: bench_op(bench, CASE), 0.0))
    assert len(bench.session.failed) == 1
    assert bench.session.recorder.records == []
