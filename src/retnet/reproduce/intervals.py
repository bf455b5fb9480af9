"""What a few seeds tell: means, their standard errors, and whether two models differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

SMALL_T = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706}
"""97.5 % quantiles of Student's t where the expansion below is not good enough."""

Z = 1.959964
"""The same of the normal distribution."""

Outcome = Literal["holds", "does not", "cannot tell"]
"""Of a claim: the whole interval lies on its side, on the other side, or on both."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        error: its standard error; None for a single value.
        count: of values.
    """

    mean: float
    error: float | None
    count: int

    @property
    def margin(self) -> float:
        """Half of the 95 % interval; infinite for a single value, which tells nothing of it."""
        return math.inf if self.error is None else student(self.count - 1) * self.error

    def text(self, digits: int = 2) -> str:
        """Mean and standard error."""
        error = "" if self.error is None else f" ± {self.error:.{digits}f}"
        return f"{self.mean:.{digits}f}{error}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of the values of some seeds.

    Raises:
        ValueError: there is none.

    Example:
        >>> estimate([1.0, 2.0, 3.0]).text()
        '2.00 ± 0.58'
    """
    count = len(values)
    if count < 1:
        raise ValueError("a mean of 0 values is not defined; run at least one seed")
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean=mean, error=None, count=1)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Estimate(mean=mean, error=math.sqrt(squares / (count - 1) / count), count=count)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, to three digits.

    Example:
        >>> round(student(2), 3), round(student(9), 2)
        (4.303, 2.26)
    """
    if freedom in SMALL_T:
        return SMALL_T[freedom]
    # Cornish and Fisher's expansion in 1 / freedom
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    third = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + first / freedom + second / freedom**2 + third / freedom**3


def difference(left: Mapping[int, float], right: Mapping[int, float]) -> Estimate:
    """How much larger `left` is, seed by seed.

    A seed sets the order of the text for every model, so that pairs share some of their luck.

    Args:
        left: value of each seed.
        right: likewise; only the seeds of both count.

    Raises:
        ValueError: they have no seed in common.
    """
    return estimate([left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())])


def outcome(gap: Estimate) -> Outcome:
    """Whether a difference that is claimed to be above 0 is."""
    if gap.mean - gap.margin > 0:
        return "holds"
    return "does not" if gap.mean + gap.margin < 0 else "cannot tell"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence that is true if a difference is above 0.

    Attributes:
        text: the sentence.
        gap: the difference; None where a result is missing.
        unit: of the difference.
    """

    text: str
    gap: Estimate | None
    unit: str

    @property
    def outcome(self) -> Outcome:
        """What the results say of it."""
        return "cannot tell" if self.gap is None else outcome(self.gap)

    @property
    def evidence(self) -> str:
        """The difference and its interval, in words."""
        if self.gap is None:
            return "not run"
        if self.gap.error is None:
            return f"{self.gap.mean:+.3f} {self.unit}, one seed"
        low, high = self.gap.mean - self.gap.margin, self.gap.mean + self.gap.margin
        return f"{self.gap.mean:+.3f} {self.unit}, 95 % interval {low:+.3f} to {high:+.3f}"


LEADS: dict[Outcome, str] = {
    "holds": "Holds",
    "does not": "Does not hold",
    "cannot tell": "Cannot tell",
}


def verdict(claims: Sequence[Claim]) -> str:
    """A paragraph: which claims hold, which do not, and of which these results cannot tell."""
    run = [claim for claim in claims if claim.gap is not None]
    parts = []
    for kind, lead in LEADS.items():
        mine = [claim for claim in run if claim.outcome == kind]
        if mine:
            said = "; ".join(f"{claim.text} ({claim.evidence})" for claim in mine)
            parts.append(f"**{lead}** ({len(mine)} of {len(run)}): {said}.")
    missing = [claim.text for claim in claims if claim.gap is None]
    if missing:
        parts.append(f"**Not run**: {'; '.join(missing)}.")
    return " ".join(parts) or "There is nothing to compare."
