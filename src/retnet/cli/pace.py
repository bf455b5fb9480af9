"""How fast a text came, and what it left in memory."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retnet.model import Decoder


class Pace:
    """A stopwatch that starts at the first piece of text: reading the prompt is not writing."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._ended: float | None = None

    def begin(self) -> None:
        """Note that a piece of text has come."""
        if self._started is None:
            self._started = time.perf_counter()

    def end(self) -> None:
        """Note that no more will come."""
        self._ended = time.perf_counter()

    def report(self, model: "Decoder", num_tokens: Sequence[int]) -> str:
        """Say the rate of texts of so many tokens each, written side by side, and the state."""
        from retnet.evaluate import format_bytes, state_bytes_per_text

        words = [f"{sum(num_tokens)} tokens"]
        # the first token of each text came before the stopwatch started
        rest, steps = sum(num_tokens) - len(num_tokens), max(num_tokens, default=0) - 1
        if self._started is not None and self._ended is not None and steps > 0:
            seconds = self._ended - self._started
            words += [
                f"{rest / seconds:.0f} tokens/s",
                f"{1000 * seconds / steps:.2f} ms per token",
            ]
        words.append(f"state {format_bytes(state_bytes_per_text(model))} at any length")
        return ", ".join(words)
