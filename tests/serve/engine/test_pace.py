import pytest

from retnet.serve.engine.pace import GAP, PASS_STEPS, Pace

LAYERS = 4


def passes(pace: Pace, per_token: float, count: int, step: float = 0.03) -> float:
    """Read again and again; how long a pass takes in the end."""
    pace.wrote(3, step, quiet=True)
    took = 0.0
    for _ in range(count):
        took = 0.001 + per_token * pace.budget
        pace.wrote(3, step, quiet=False)
        pace.read(pace.budget, LAYERS * [took / LAYERS])
    return took


@pytest.mark.parametrize("per_token", [1e-5, 1e-3])
def test_a_part_of_a_pass_takes_as_long_as_it_may(per_token: float) -> None:
    pace = Pace(4, 1000)
    took = passes(pace, per_token, 60)
    most = (GAP - 1) * 0.03 * min(LAYERS, PASS_STEPS)
    assert pace.budget == 1000 or 0.65 * most < took < 1.1 * most


def test_a_budget_stays_within_its_range_and_a_fixed_one_as_it_is() -> None:
    slow, fast, fixed = Pace(4, 100), Pace(4, 100), Pace(4, 100, fixed=64)
    for pace, per_token in ((slow, 10.0), (fast, 0.0), (fixed, 10.0)):
        passes(pace, per_token, 30)
    assert (slow.budget, fast.budget, fixed.budget) == (4, 100, 64)
    assert fixed.allows(100.0)


def test_passes_have_few_sizes() -> None:
    pace, seen = Pace(4, 1000), set()
    for step in range(10, 200):
        passes(pace, 1e-3, 3, step=0.001 * step)
        seen.add(pace.budget)
    assert len(seen) < 20


def test_a_few_tokens_teach_nothing() -> None:
    pace = Pace(40, 100)
    passes(pace, 1e-4, 20)
    before = pace.budget
    pace.read(before // 2 - 1, [10.0])
    assert pace.budget == before


def test_what_disturbs_writing_is_taken_from_reading() -> None:
    pace = Pace(4, 100)
    for _ in range(5):
        pace.wrote(3, 0.010, quiet=True)
    for _ in range(50):
        pace.wrote(3, 0.013, quiet=False)
    assert pace.allows(0.0055)
    assert not pace.allows(0.0065)


def test_a_slow_step_changes_little() -> None:
    pace = Pace(4, 100)
    for _ in range(5):
        pace.wrote(3, 0.010, quiet=True)
    for quiet in (True, False):
        pace.wrote(3, 5.0, quiet=quiet)
    assert pace.allows(0.008)
    assert not pace.allows(0.011)


def test_one_slow_part_changes_nothing() -> None:
    pace = Pace(40, 100)
    passes(pace, 1e-4, 40)
    before = pace.budget
    part = (0.001 + 1e-4 * before) / LAYERS
    pace.read(before, [part, 5.0, part, part])
    assert pace.budget == before
