from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from bench.gpu.benches import CPU, again, make_bench
from retnet.bench.gpu import decode
from retnet.bench.gpu.bench import run_step
from retnet.bench.gpu.cases import QUICK_DECODE
from retnet.bench.gpu.decode import OneModel, bench_context, decode_part, random_state
from retnet.bench.gpu.models import ATTENTION, OURS, WHO, build, configs

METRICS = {"step_ms", "tokens_per_s", "share_of_copy", "state_gib", "peak_gib"}


def test_decoding_is_measured_eager_and_recorded_with_both_models(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, again)
    for step in decode_part(quick=True).steps:
        run_step(bench, step)
    assert bench.session.failed == bench.session.skipped == []
    records = bench.session.recorder.records
    found = {tuple(r.case[f] for f in ("by", "B", "context", "launch")) for r in records}
    assert found == {
        (who, B, context, launch)
        for who in WHO
        for B in QUICK_DECODE.batches
        for context in QUICK_DECODE.contexts
        for launch in ("eager", "graph")
    }
    assert {r.metric for r in records} == METRICS


def test_a_state_of_random_numbers_is_as_large_as_what_was_read_makes_it() -> None:
    both = configs(QUICK_DECODE.config)
    sizes = {}
    for who in WHO:
        model = build(both[who], CPU, torch.bfloat16).eval()
        for context in (10, 20):
            state, sizes[who, context] = random_state(model, 3, context, room=5)
            assert state.position.tolist() == [context] * 3
            with torch.inference_mode():
                for _ in range(5):
                    logits, state = model(torch.zeros(3, 1, dtype=torch.int64), state)
                    assert logits.isfinite().all()
    assert sizes[OURS, 10] == sizes[OURS, 20] == 2 * 3 * 2 * 16 * 32 * 4  # layers B H D_k D_v
    assert sizes[ATTENTION, 20] == 2 * sizes[ATTENTION, 10] == 2 * 2 * 3 * 20 * 32 * 2


def test_what_does_not_fit_is_recorded_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*_: Any) -> NoReturn:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(decode, "random_state", scarce)
    bench = make_bench(tmp_path)
    models = OneModel(QUICK_DECODE)
    bench_context(bench, case=QUICK_DECODE, models=models, who=OURS, B=2, context=8)
    [record] = bench.session.recorder.records
    assert (record.metric, record.spread.median) == ("out_of_memory", 1.0)


def test_steps_that_cannot_be_recorded_are_measured_eagerly(tmp_path: Path) -> None:
    def refuse(_: object) -> NoReturn:
        raise RuntimeError("operation not permitted when stream is capturing")

    bench = make_bench(tmp_path, refuse)
    case = replace(QUICK_DECODE, batches=(1,), contexts=(8,))
    bench_context(bench, case=case, models=OneModel(case), who=OURS, B=1, context=8)
    assert {r.case["launch"] for r in bench.session.recorder.records} == {"eager"}
    [text] = bench.session.skipped
    assert text.startswith("retnet was not decoded as CUDA graphs: RuntimeError")


def test_recorded_steps_that_compute_something_else_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(decode.GraphedDecoder):
        def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
            return 2 * super().__call__(tokens)

    monkeypatch.setattr(decode, "GraphedDecoder", Wrong)
    bench = make_bench(tmp_path, again)
    case = replace(QUICK_DECODE, batches=(1,), contexts=(8,))
    bench_context(bench, case=case, models=OneModel(case), who=OURS, B=1, context=8)
    [text] = bench.session.failed
    assert text.startswith("decoding with retnet as CUDA graphs: 0 differs from eager steps's")
    assert {r.case["launch"] for r in bench.session.recorder.records} == {"eager"}


def test_only_one_model_is_held_and_then_none(tmp_path: Path) -> None:
    bench, models = make_bench(tmp_path), OneModel(QUICK_DECODE)
    first = models.get(bench, OURS)
    assert models.get(bench, OURS) is first
    assert models.get(bench, ATTENTION) is not first
    models.drop(bench)
    assert models._judged is None
