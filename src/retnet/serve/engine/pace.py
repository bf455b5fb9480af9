"""How many tokens of prompts a step may read without delaying the texts that are being written."""

PATIENCE = 0.8
"""How long reading may take, in steps of writing: a gap between tokens then does not double."""
MOST_CHANGE = 1.5
"""Factor by which the budget changes at most from one step to the next."""


class Pace:
    """Learns a budget from how long steps take; no clock of its own.

    Attributes:
        budget: tokens to read in the next step while texts are written.
    """

    def __init__(self, least: int, most: int, fixed: int | None = None) -> None:
        """Begin with few tokens.

        Args:
            least: of tokens in a step.
            most: likewise.
            fixed: a budget that nothing changes; None to learn one.
        """
        self.budget = least if fixed is None else fixed
        self._least, self._most, self._fixed = least, most, fixed

    def learn(self, tokens: int, reading_s: float, writing_s: float) -> None:
        """Take note of a step that did both.

        Args:
            tokens: read.
            reading_s: what that took.
            writing_s: what the tokens of all texts took.
        """
        if self._fixed is not None or 2 * tokens < self.budget:  # few tokens say little of many
            return
        factor = PATIENCE * writing_s / max(reading_s, 1e-9)
        factor = min(max(factor, 1 / MOST_CHANGE), MOST_CHANGE)
        aim = self.budget * (1 + 0.5 * (factor - 1))  # half of the way: single steps are noisy
        self.budget = min(max(round(aim), self._least), self._most)
