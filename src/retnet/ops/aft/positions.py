"""What the variants with learned position biases share."""

from jaxtyping import Int
from torch import Tensor

from retnet.ops.layout import Layout

NOTHING = -1e30
"""Logarithm of no weight: finite, because -inf - -inf is not a number."""


def bias_rows(layout: Layout, max_len: int) -> Int[Tensor, "rows T"]:
    """The position of each token, as an index into biases of `max_len` positions.

    The one look at values that is taken, once in a call for all layers.

    Raises:
        ValueError: a document is longer, or rows are spread over ranks.
    """
    if layout.spread is not None:
        raise ValueError(
            "aft passes nothing between ranks, so its rows must not be spread over several "
            "(sequence); run them whole (train.sequence_ranks = 1)"
        )

    def build() -> Tensor:
        positions = layout.positions
        if layout.valid is not None:  # a padded token holds the next index, which may not exist
            positions = positions.where(layout.valid, 0)
        last = int(positions.max()) if positions.numel() else 0
        if last >= max_len:
            raise ValueError(
                f"a document has a token at position {last}, and the position biases end at "
                f"max_len ({max_len}); use shorter rows, or a model with a larger max_len"
            )
        return positions

    return layout.shared(("aft positions", max_len), build)
