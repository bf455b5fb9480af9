"""The training step of a whole model on a GPU, with retention and with attention.

One after the other, not by turns: both together would not fit with as many rows. What does not fit
with one row is recorded as out of memory.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from retnet.bench.gates import gate_finite
from retnet.bench.gpu.bench import Bench, Part, Step
from retnet.bench.gpu.cases import QUICK_TRAINS, TRAINS, TrainCase
from retnet.bench.gpu.device import (
    first_seconds,
    free_memory,
    is_out_of_memory,
    take_turns,
    watch_memory,
)
from retnet.bench.gpu.gates import gate_model
from retnet.bench.gpu.models import WHO, build, configs
from retnet.bench.record import Gate
from retnet.bench.timing import Spread, milliseconds, rates
from retnet.model import Decoder
from retnet.model.scoring import score
from retnet.train.flops import training_flops_per_token

BENCH = "gpu/train_step"
NOT_JUDGED = Gate(True, "nothing was computed that could be wrong")


class Found(NamedTuple):
    """What was seen of one number of rows."""

    seconds: list[float]
    first_s: float
    peak_gib: float
    flops_per_token: int
    gate: Gate


def train_part(quick: bool) -> Part:
    """Each case with retention, then with attention."""
    cases = QUICK_TRAINS if quick else TRAINS
    steps = [
        Step(_name(case, who), _run(case, who), 0.0 if quick else 25.0)
        for case in cases
        for who in WHO
    ]
    return Part(steps, 0.0 if quick else 100.0)


def _name(case: TrainCase, who: str) -> str:
    way = "with" if case.checkpointing else "without"
    return f"training step of {case.name}, {who}, T {case.T:,}, {way} gradient checkpointing"


def _run(case: TrainCase, who: str) -> Callable[[Bench], None]:
    return lambda bench: bench_train(bench, case, who)


def bench_train(bench: Bench, case: TrainCase, who: str) -> None:
    """Measure the first number of rows that fits.

    Raises:
        GateFailed: what the model computes is wrong.
    """
    config = configs(case.config)[who]
    fields = {"model": case.name, "by": who, "T": case.T, "checkpointing": case.checkpointing}
    for B in case.rows:
        try:
            found = _measure(bench, case, partial(build, config, bench.device, torch.float32), B)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            found = None
        free_memory(bench.device)  # outside of `except`, whose traceback holds every tensor
        if found is not None:
            bench.session.recorder.add(
                BENCH,
                {**fields, "B": B, **bench.versions},
                _metrics(bench, found, B * case.T),
                found.gate,
            )
            return
    metrics = {"out_of_memory": Spread.of([1.0])}
    fields |= {"B": case.rows[-1], **bench.versions}
    bench.session.recorder.add(BENCH, fields, metrics, NOT_JUDGED)


def _metrics(bench: Bench, found: Found, tokens: int) -> dict[str, Spread]:
    peak = 1e12 * bench.ceilings.matmul_tflops.median
    work = found.flops_per_token * tokens / peak
    return {
        "step_ms": milliseconds(found.seconds),
        "tokens_per_s": rates(float(tokens), found.seconds),
        "share_of_matmul": rates(work, found.seconds),
        "peak_gib": Spread.of([found.peak_gib]),
        "first_call_s": Spread.of([found.first_s]),
    }


def _measure(bench: Bench, case: TrainCase, make: Callable[[], Decoder], B: int) -> Found:
    model = make()
    model.eval()
    with _autocast(bench.device):
        gate = gate_model(model)
    gate.require()
    model.train()
    model.gradient_checkpointing = case.checkpointing
    step = training_step(model, B, case.T, bench.device)
    peak_gib = watch_memory(bench.device)
    losses: list[Tensor] = []
    first_s = first_seconds(lambda: losses.append(step()), bench.device)
    gate_finite({"the loss": losses[0]} | dict(model.named_parameters())).require()
    effort = bench.effort._replace(warmup=0, min_rounds=3)  # a step takes seconds
    seconds = take_turns({"step": step}, bench.device, effort)["step"]
    flops = training_flops_per_token(model, case.T)
    return Found(seconds, first_s, peak_gib(), flops, gate)


def training_step(model: Decoder, B: int, T: int, device: torch.device) -> Callable[[], Tensor]:
    """One step on random tokens, as the trainer takes it; returns its loss."""
    random = torch.Generator(device).manual_seed(0)
    text = torch.randint(model.config.vocab_size, (B, T + 1), generator=random, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(device):
            loss = score(model, text[:, :-1], text[:, 1:]).nats / (B * T)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16)
