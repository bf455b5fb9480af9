import pytest

from retnet.bench.timing import (
    Effort,
    Spread,
    Turns,
    alternate,
    in_turns,
    milliseconds,
    rates,
    ratios,
)


def test_competitors_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    effort = Effort(warmup=1, min_rounds=3, budget_s=0.0)
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, effort)
    assert calls == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert all(s >= 0 for times in seconds.values() for s in times)


def test_rounds_go_on_until_the_budget_is_spent() -> None:
    effort = Effort(warmup=0, min_rounds=1, budget_s=0.02)
    (times,) = alternate({"a": lambda: None}, effort).values()
    assert len(times) > 1


def test_a_turn_has_one_call_that_does_not_count() -> None:
    calls: list[str] = []
    seconds = in_turns(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        Turns(num=2, most_calls=3, most_s=60.0),
    )
    assert "".join(calls) == 2 * ("aaaa" + "bbbb")
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_a_turn_ends_when_its_time_is_over() -> None:
    calls: list[float] = []
    in_turns({"a": lambda: calls.append(0.0)}, Turns(num=3, most_calls=100, most_s=0.0))
    assert len(calls) == 3 * 2


def test_spread_is_the_median_and_the_middle_three_fifths() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0, 0.0]) == Spread(2.5, 1.0, 4.0, 6)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 1)


def test_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values to summarise"):
        Spread.of([])


def test_ratios_are_taken_pair_by_pair() -> None:
    # the machine slows down fourfold; each pair still says two
    assert ratios([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == Spread(2.0, 2.0, 2.0, 3)


def test_ratios_of_unpaired_times_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1 times are no pairs"):
        ratios([1.0, 2.0], [1.0])


def test_units_are_milliseconds_and_per_second() -> None:
    assert milliseconds([0.5]).median == 500.0
    assert rates(10.0, [0.5]).median == 20.0
