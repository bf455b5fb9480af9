"""How long a step may read prompts without delaying the texts that are being written."""

from collections.abc import Sequence
from statistics import median

GAP = 1.9
"""Most time between two tokens of a text beside a prompt that is read, in times without one."""
PASS_STEPS = 8
"""Steps that a pass over pieces of prompts may take: what a newcomer waits for at most."""
FIRST = 64
"""Tokens of the first pass."""
MOST_CHANGE = 2.0
"""Factor by which the budget changes at most from one pass to the next."""


class Pace:
    """Learns from how long things take what may be done; no clock of its own.

    A step writes a token of each text and then reads a part of a pass, layer by layer, for as long
    as it `allows`.

    Attributes:
        budget: tokens to read in the next pass while texts are written.
    """

    def __init__(self, least: int, most: int, fixed: int | None = None) -> None:
        """Begin with few tokens, of which a layer is read as quickly as of fewer.

        Args:
            least: of tokens in a pass.
            most: likewise.
            fixed: a budget that nothing changes, read in one step; None to learn one.
        """
        self.budget = min(max(least, FIRST), most) if fixed is None else fixed
        self._least, self._most, self._fixed = least, most, fixed
        self._aim = float(self.budget)
        self._quiet: dict[int, float] = {}  # seconds of a step by its rows, where nothing is read
        self._disturbance = 0.0  # seconds that a step takes longer where something is read
        self._allowed = 0.0

    def wrote(self, rows: int, seconds: float, *, quiet: bool) -> None:
        """Take note of a step; what it read does not count.

        Args:
            rows: texts that were written.
            seconds: that took.
            quiet: nothing was read in this step nor in that before, whose threads still disturb.
        """
        if quiet:
            self._quiet[rows] = _follow(self._quiet.get(rows), seconds)
        alone = self._quiet.get(rows, seconds)
        if not quiet:
            longer = min(max(seconds - alone, 0.0), alone)
            self._disturbance += 0.1 * (longer - self._disturbance)
        self._allowed = max((GAP - 1) * alone - self._disturbance, 0.0)

    def allows(self, seconds: float) -> bool:
        """Whether a step may read for so long."""
        return self._fixed is not None or seconds <= self._allowed

    def read(self, tokens: int, parts: Sequence[float]) -> None:
        """Take note of a pass while texts were written.

        Args:
            tokens: read.
            parts: seconds of each part, none of which could be divided.
        """
        if self._fixed is not None or 2 * tokens < self.budget:  # few tokens say little of many
            return
        usual = max(median(parts), 1e-9)  # a mean would follow what something else delayed
        factor = self._allowed / usual * min(PASS_STEPS / len(parts), 1.0)
        factor = min(max(factor, 1 / MOST_CHANGE), MOST_CHANGE)
        # half of the way: single passes are noisy
        aim = self._aim * (1 + 0.5 * (factor - 1))
        self._aim = min(max(aim, float(self._least)), float(self._most))
        few = _few_sizes(self._aim) if self._aim < self._most else self._most
        self.budget = max(few, self._least)


def _few_sizes(aim: float) -> int:
    """At most two sizes in an octave: products are prepared anew for each size they meet."""
    power = 1 << max(int(aim).bit_length() - 1, 0)
    return power + power // 2 if aim >= 1.5 * power else power


def _follow(before: float | None, seconds: float) -> float:
    """Smooth times; what is much longer than usual was something else's doing."""
    if before is None:
        return seconds
    return before + (0.3 if seconds < before else 0.1) * (min(seconds, 1.5 * before) - before)
