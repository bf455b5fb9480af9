import math

import pytest
import torch

from retnet.bench.timing import Effort
from retnet.hub import from_dict
from retnet.model import DecoderConfig
from retnet.reproduce import budget
from retnet.reproduce.budget import FEWEST_STEPS, MOST_STEPS, fit, step_seconds, with_steps
from retnet.train import TrainSection

TRAIN = TrainSection(steps=1, batch_size=2, seq_len=8, accumulate=2)


def test_the_faster_precision_is_taken_with_steps_that_fill_the_time() -> None:
    section = fit(TRAIN, 60.0, {"float32": 0.5, "bfloat16": 0.25})
    assert (section.precision, section.steps) == ("bfloat16", 180)
    section = fit(TRAIN, 60.0, {"float32": 0.25, "bfloat16": 2.0})
    assert (section.precision, section.steps) == ("float32", 180)


@pytest.mark.parametrize(("cost", "steps"), [(1000.0, FEWEST_STEPS), (1e-6, MOST_STEPS)])
def test_a_strange_machine_gets_steps_that_make_sense(cost: float, steps: int) -> None:
    assert fit(TRAIN, 60.0, {"float32": cost, "bfloat16": cost}).steps == steps


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"seconds \(.*\) must be above 0"):
        fit(TRAIN, seconds, {"float32": 1.0, "bfloat16": 1.0})


@pytest.mark.parametrize("steps", [1, 7, 400])
def test_periods_follow_from_the_number_of_steps(steps: int) -> None:
    section = with_steps(TRAIN, steps)
    assert section.steps == steps
    periods = (section.warmup_steps, section.log_every, section.eval_every, section.save_every)
    assert all(1 <= period <= max(steps // 4, 1) for period in periods)


def test_both_precisions_are_measured_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "EFFORT", Effort(warmup=0, min_rounds=1, budget_s=0.0))
    before = torch.get_rng_state()
    layer = {"mixer": {"name": "retention", "num_heads": 2}}
    model = from_dict(DecoderConfig, {"d_model": 16, "layers": [layer], "vocab_size": 16})
    cost = step_seconds(model, TRAIN)
    assert set(cost) == {"float32", "bfloat16"}
    assert min(cost.values()) > 0
    assert torch.equal(torch.get_rng_state(), before)
