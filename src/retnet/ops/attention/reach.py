"""How far back a query looks: everywhere, or over a sliding window and the first tokens."""

from typing import NamedTuple


class Reach(NamedTuple):
    """Which keys of its document a query may look at.

    Query i sees keys j with `i - window < j <= i`, itself included (Beltagy et al. 2020,
    arXiv:2004.05150, causal), and the document's first `sinks` keys (Xiao et al. 2023,
    arXiv:2309.17453).

    Attributes:
        window: keys with the query's own; None for all.
        sinks: first keys of the document that stay visible beyond the window.
    """

    window: int | None = None
    sinks: int = 0

    def num_keys(self, tokens: int) -> int:
        """Keys that the last of so many tokens sees."""
        return tokens if self.window is None else min(tokens, self.window + self.sinks)


EVERYTHING = Reach()
