"""Means, intervals and verdicts, held against numbers worked out elsewhere."""

import math

import pytest

from retnet.reproduce.intervals import Claim, difference, estimate, outcome, student, verdict


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (29, 2.045)],
)
def test_quantiles_are_those_of_printed_tables(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, abs=1.5e-3)


def test_a_mean_has_its_standard_error() -> None:
    got = estimate([1.0, 2.0, 4.0])
    assert got.mean == pytest.approx(7 / 3)
    assert got.error == pytest.approx(math.sqrt(7 / 3 / 3))
    assert got.text() == "2.33 ± 0.88"


def test_one_seed_has_no_error_and_decides_nothing() -> None:
    got = estimate([3.0])
    assert (got.error, got.margin, got.text()) == (None, math.inf, "3.00")
    assert outcome(got) == "cannot tell"
    with pytest.raises(ValueError, match="run at least one seed"):
        estimate([])


def test_differences_are_taken_seed_by_seed() -> None:
    left, right = {0: 5.0, 1: 6.0, 2: 7.0}, {0: 4.0, 1: 5.1, 3: 100.0}
    assert difference(left, right).mean == pytest.approx((1.0 + 0.9) / 2)
    assert difference(left, right).count == 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 1.1, 0.9], "holds"),
        ([-1.0, -1.1, -0.9], "does not"),
        ([1.0, -1.0, 0.5], "cannot tell"),
        ([1.0, 1.0, 3.0], "cannot tell"),
    ],
)
def test_a_claim_is_decided_by_its_interval(values: list[float], expected: str) -> None:
    assert outcome(estimate(values)) == expected


def test_the_verdict_names_every_claim_with_its_evidence() -> None:
    claims = [
        Claim(text="A beats B", gap=estimate([1.0, 1.1, 0.9]), unit="nats"),
        Claim(text="A beats C", gap=estimate([-1.0, -1.1, -0.9]), unit="nats"),
        Claim(text="A beats D", gap=estimate([2.0]), unit="nats"),
        Claim(text="A beats E", gap=None, unit="nats"),
    ]
    assert verdict(claims) == (
        "**Holds** (1 of 3): A beats B (+1.000 nats, 95 % interval +0.752 to +1.248). "
        "**Does not hold** (1 of 3): A beats C (-1.000 nats, 95 % interval -1.248 to -0.752). "
        "**Cannot tell** (1 of 3): A beats D (+2.000 nats, one seed). "
        "**Not run**: A beats E."
    )
    assert verdict([]) == "There is nothing to compare."
