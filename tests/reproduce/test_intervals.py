"""Means, intervals and verdicts, held against numbers worked out elsewhere."""

import math

import pytest

from retnet.reproduce.intervals import Claim, difference, estimate, outcome, verdict


def test_a_mean_has_its_standard_error() -> None:
    got = estimate([1.0, 2.0, 4.0])
    assert got.mean == pytest.approx(7 / 3)
    assert got.error == pytest.approx(math.sqrt(7 / 3 / 3))
    assert got.margin == pytest.approx(4.303 * math.sqrt(7 / 3 / 3), rel=1e-3)
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0], "does not"),  # surely no difference
        ([0.003, 0.004, 0.003], "does not"),  # surely one, but too small to count
        ([0.007, 0.004, 0.009], "cannot tell"),
        ([0.004, 0.003, 0.02], "cannot tell"),
        ([0.011, 0.012, 0.011], "holds"),
    ],
)
def test_small_differences_are_none(values: list[float], expected: str) -> None:
    assert outcome(estimate(values), least=0.01) == expected


def test_the_verdict_names_every_claim_with_its_evidence() -> None:
    claims = [
        Claim(says="A beats {}", name="B", gap=estimate([1.0, 1.1, 0.9])),
        Claim(says="A beats {}", name="C", gap=estimate([-1.0, -1.1, -0.9])),
        Claim(says="A beats {}", name="D", gap=estimate([2.0])),
        Claim(says="A beats {}", name="E", gap=estimate([0.001, 0.001, 0.001])),
        Claim(says="A beats {}", name="F", gap=None),
        Claim(says="A is good", gap=estimate([0.5, 0.6, 0.7])),
    ]
    assert verdict(claims) == (
        "**Holds** (2 of 5): A beats B (+1.000 ± 0.248); A is good (+0.600 ± 0.248). "
        "**Does not hold** (2 of 5): A beats C (-1.000 ± 0.248), E (+0.001 ± 0.000). "
        "**Cannot tell** (1 of 5): A beats D (+2.000, one seed). "
        "**Not run**: A beats F. In brackets the mean difference and half of its 95 % interval, in "
        "nats per token (less than 0.005 counts as none)."
    )
    assert verdict([]) == "There is nothing to compare."
