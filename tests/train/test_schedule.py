import math

import pytest

from retnet.train import TrainSection
from retnet.train.schedule import learning_rate


def rates(**settings):
    config = TrainSection(learning_rate=1.0, **settings)
    return [learning_rate(config, step) for step in range(config.steps)]


def test_warm_up_rises_in_a_line_to_the_highest_rate():
    assert rates(steps=9, warmup_steps=4)[:4] == [0.25, 0.5, 0.75, 1.0]


def test_linear_falls_in_a_line_to_its_share_at_the_last_step():
    got = rates(steps=6, warmup_steps=2, schedule="linear", decay_to=0.2)
    assert got == pytest.approx([0.5, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_half_way_in_the_middle_and_flat_at_both_ends():
    got = rates(steps=1000, warmup_steps=0, schedule="cosine", decay_to=0.1)
    assert got[499] == pytest.approx(0.55)
    assert got[-1] == pytest.approx(0.1)
    assert got[249] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert got == sorted(got, reverse=True)
    assert got[0] - got[1] < 1e-4


def test_constant_stays():
    assert rates(steps=4, warmup_steps=1, schedule="constant", decay_to=0.0) == [1.0] * 4


def test_a_run_shorter_than_its_warm_up_only_rises():
    assert rates(steps=2, warmup_steps=4) == [0.25, 0.5]


def test_a_warm_up_as_long_as_the_run_needs_no_division_by_zero():
    assert rates(steps=4, warmup_steps=4)[-1] == 1.0
