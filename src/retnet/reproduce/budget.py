"""How much training fits into some seconds on this machine: measured, not guessed."""

from dataclasses import replace

import torch

from retnet.bench.cases import ModelSize, Precision, TrainCase
from retnet.bench.ours import trainee_of
from retnet.bench.timing import Effort, alternate
from retnet.bench.trainees import training_step
from retnet.model import Decoder, DecoderConfig
from retnet.train import TrainSection

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

EFFORT = Effort(warmup=1, min_rounds=2, budget_s=1.0)

IN_STEPS = 0.75
"""Share of a run's time that its steps take; fetching, clipping and validating take the rest."""

FEWEST_STEPS = 20
MOST_STEPS = 4000


def step_seconds(model: DecoderConfig, train: TrainSection) -> dict[str, float]:
    """Seconds of a training step in each precision: a processor without matrix instructions for
    bfloat16 is slower with it, and no flag tells by how much.

    Args:
        model: the decoder, its vocab_size filled in.
        train: batch_size, seq_len and accumulate matter.
    """
    cases = {
        precision: TrainCase(
            T=train.seq_len,
            B=train.batch_size // train.accumulate,
            precision=precision,
            size=ModelSize(vocab_size=model.vocab_size),
        )
        for precision in PRECISIONS
    }
    with torch.random.fork_rng(devices=[]):
        steps = {
            name: training_step(trainee_of(Decoder(model)), case) for name, case in cases.items()
        }
        times = alternate(steps, EFFORT)
    # the fastest: whatever else ran meanwhile only ever adds
    return {name: train.accumulate * min(times[name]) for name in cases}


def fit(train: TrainSection, seconds: float, cost: dict[str, float]) -> TrainSection:
    """Take the faster precision, and as many steps as take `seconds`.

    Args:
        train: whose steps, precision and periods are replaced.
        seconds: to train for.
        cost: of a step, as `step_seconds` returned it.

    Raises:
        ValueError: seconds is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds ({seconds}) must be above 0; 105 make a two-minute demo")
    precision = min(PRECISIONS, key=lambda name: cost[name])
    steps = round(IN_STEPS * seconds / cost[precision])
    return with_steps(
        replace(train, precision=precision), min(max(steps, FEWEST_STEPS), MOST_STEPS)
    )


def with_steps(train: TrainSection, steps: int) -> TrainSection:
    """Train for so many steps, and report and save as often as suits that."""
    return replace(
        train,
        steps=steps,
        warmup_steps=max(steps // 15, 1),
        log_every=max(steps // 100, 1),
        eval_every=max(steps // 4, 1),
        save_every=max(steps // 4, 1),
    )
