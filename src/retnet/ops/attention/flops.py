"""Operations of attention's matrix products, a multiplication and an addition as two."""

from retnet.ops.attention.blocks import num_pairs
from retnet.ops.attention.reach import EVERYTHING, Reach


def causal_flops(T: int, D_k: int, D_v: int, reach: Reach = EVERYTHING) -> int:
    """Of the forward pass per token and head, in a row of T tokens: scores, and scores times v.

    Pairs above the diagonal count, as is the custom for attention, though kernels skip most; under
    a window, those of the blocks that it is computed in.
    """
    return 2 * num_pairs(T, reach) * (D_k + D_v) // T
