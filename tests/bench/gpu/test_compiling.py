import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.gpu.benches import CPU, make_bench
from retnet.bench.gpu import compiling
from retnet.bench.gpu.bench import Job
from retnet.bench.gpu.cases import QUICK_OPS
from retnet.bench.gpu.compiling import call_once, compile_all, compile_step
from retnet.bench.gpu.rivals import FLA
from retnet.bench.peers import PeerMissing

QUICK, BROKEN, SLOW = Job("retnet", 1, 1), Job("retnet", 2, 2), Job(FLA, 1, 1)
CODE = {
    QUICK: "import os; assert os.environ['FLA_CACHE_RESULTS'] == '0'",
    BROKEN: "raise SystemExit(3)",
}


def command(job: Job) -> Sequence[str]:
    return sys.executable, "-c", CODE.get(job, "import time; time.sleep(60)")


def test_processes_compile_at_the_same_time_and_late_ones_are_ended() -> None:
    found = compile_all([QUICK, BROKEN, SLOW], 2.0, command)
    assert found[SLOW] == math.inf
    assert found[BROKEN] is None
    assert 0 < (found[QUICK] or 0) < 2.0


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, found: dict[Job, float | None]) -> list[Job]:
    """As if there were one, with what its processes would find; the jobs they are given."""
    given: list[Job] = []

    def compiled(jobs: Sequence[Job], limit_s: float) -> dict[Job, float | None]:
        assert limit_s == compiling.LIMIT_SECONDS
        given.extend(jobs)
        return found

    monkeypatch.setattr(compiling, "compile_all", compiled)
    return given


def test_what_was_compiled_is_recorded_and_what_was_late_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "fla_retention", lambda _: (FLA, None))
    jobs = on_a_gpu(monkeypatch, {QUICK: 12.0, BROKEN: None, SLOW: math.inf})
    bench = replace(make_bench(tmp_path), device=torch.device("cuda", 0))
    compile_step(QUICK_OPS).run(bench)
    assert jobs == [Job("retnet", 16, 32), Job(FLA, 16, 32)]
    assert bench.late == {SLOW}
    [record] = bench.session.recorder.records
    assert (record.metric, record.spread.median, record.case["by"]) == ("cold_s", 12.0, "retnet")


def test_a_rival_that_is_missing_is_not_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: torch.device) -> None:
        raise PeerMissing(FLA, "is not installed", "pip install it")

    monkeypatch.setattr(compiling, "fla_retention", missing)
    jobs = on_a_gpu(monkeypatch, {})
    bench = replace(make_bench(tmp_path), device=torch.device("cuda", 0))
    compile_step(QUICK_OPS).run(bench)
    assert {job.who for job in jobs} == {"retnet"}
    assert bench.session.skipped == [
        f"{FLA} is not installed; it is optional, to measure beside ours: pip install it"
    ]


def test_without_a_gpu_nothing_is_compiled(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    compile_step(QUICK_OPS).run(bench)
    assert bench.session.recorder.records == []


def test_a_process_calls_the_kernel_of_its_job_forward_and_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, ...]] = []

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(tuple(q.shape))
        return (q * k).sum(-1, keepdim=True) * v

    monkeypatch.setattr(compiling, "fla_retention", lambda _: (FLA, forward))
    call_once(Job(FLA, 16, 32), CPU, T=3)
    assert seen == [(1, 3, 8, 16), (4, 3, 8, 16)]
    call_once(Job("retnet", 16, 16), CPU, T=3)


def test_a_process_reads_its_job_from_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(compiling, "call_once", lambda *words: seen.extend(words))
    monkeypatch.setattr(sys, "argv", ["-c", *list(compiling.own_command(SLOW))[3:]])
    compiling.report()
    assert seen == [SLOW, torch.device("cuda"), compiling.TOKENS]
