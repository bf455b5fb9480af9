import pytest

from retnet.serve.engine.pace import PATIENCE, Pace


@pytest.mark.parametrize("per_token", [1e-5, 1e-3])
def test_reading_takes_as_long_as_it_may(per_token: float) -> None:
    pace = Pace(4, 1000)
    for _ in range(40):
        pace.learn(pace.budget, 0.001 + per_token * pace.budget, 0.03)
    took = 0.001 + per_token * pace.budget
    assert pace.budget == 1000 or took == pytest.approx(PATIENCE * 0.03, rel=0.1)


def test_a_budget_stays_within_its_range_and_a_fixed_one_as_it_is() -> None:
    slow, fast, fixed = Pace(4, 100), Pace(4, 100), Pace(4, 100, fixed=64)
    for _ in range(30):
        slow.learn(slow.budget, 10.0, 0.01)
        fast.learn(fast.budget, 0.0, 0.01)
        fixed.learn(64, 10.0, 0.01)
    assert (slow.budget, fast.budget, fixed.budget) == (4, 100, 64)


def test_a_few_tokens_teach_nothing() -> None:
    pace = Pace(4, 100)
    before = pace.budget
    pace.learn(before // 2 - 1, 10.0, 0.01)
    assert pace.budget == before
