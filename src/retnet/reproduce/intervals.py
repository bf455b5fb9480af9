"""What a few seeds tell: means, their standard errors, and whether two models differ."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from retnet.evaluate.context import SAME_NATS
from retnet.evaluate.losses import mean_interval

Outcome = Literal["holds", "does not", "cannot tell"]
"""Of a claim that a difference is above 0: see `outcome`."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        error: its standard error; None for a single value.
        margin: half of the 95 % interval; infinite for a single value, which tells nothing of it.
        count: of values.
    """

    mean: float
    error: float | None
    margin: float
    count: int

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
        return Estimate(mean=mean, error=None, margin=math.inf, count=1)
    margin = mean_interval(values).high - mean
    error = statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean=mean, error=error, margin=margin, count=count)


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


def outcome(gap: Estimate, least: float = 0.0) -> Outcome:
    """Whether a difference that is claimed to be above 0 is.

    Args:
        gap: the difference.
        least: what is smaller is no difference, however sure its sign.

    Returns:
        It holds if the interval lies above 0 and the mean is at least `least`; it does not if the
        whole interval lies below `least`.
    """
    if gap.mean + gap.margin < least:
        return "does not"
    return "holds" if gap.mean >= least and gap.mean - gap.margin > 0 else "cannot tell"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence that is true if a difference is above 0, and large enough to count.

    Attributes:
        says: the sentence; claims that differ in a name only have {} in its place.
        name: that name.
        gap: the difference; None where a result is missing.
        unit: of the difference.
        least: smaller differences are none.
    """

    says: str
    name: str = ""
    gap: Estimate | None
    unit: str = "nats per token"
    least: float = SAME_NATS

    @property
    def outcome(self) -> Outcome:
        """What the results say of it."""
        return "cannot tell" if self.gap is None else outcome(self.gap, self.least)

    @property
    def text(self) -> str:
        """The sentence."""
        return self.says.format(self.name)

    @property
    def evidence(self) -> str:
        """The difference and half of its interval."""
        if self.gap is None:
            return ""
        margin = "one seed" if self.gap.error is None else f"± {self.gap.margin:.3f}"
        return f"({self.gap.mean:+.3f}{' ' if self.gap.error is not None else ', '}{margin})"


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
            parts.append(f"**{lead}** ({len(mine)} of {len(run)}): {_said(mine)}.")
    missing = [claim for claim in claims if claim.gap is None]
    if missing:
        parts.append(f"**Not run**: {_said(missing)}.")
    if run:
        units = dict.fromkeys((claim.unit, claim.least) for claim in run)
        parts.append(
            "In brackets the mean difference and half of its 95 % interval, in "
            + ", ".join(f"{unit} (less than {least:g} counts as none)" for unit, least in units)
            + "."
        )
    return " ".join(parts) or "There is nothing to compare."


def _said(claims: Sequence[Claim]) -> str:
    """The claims, those of one sentence together."""
    groups: dict[str, list[str]] = {}
    for claim in claims:
        words = [word for word in (claim.name, claim.evidence) if word]
        groups.setdefault(claim.says, []).append(" ".join(words))
    return "; ".join(
        says.format(", ".join(named)) if "{}" in says else " ".join([says, *named])
        for says, named in groups.items()
    )
