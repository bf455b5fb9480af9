"""Operations of retention's matrix products, a multiplication and an addition as two."""

from retnet.ops.retention.torch_backend import default_chunk_size


def product_flops(C: int, D_k: int, D_v: int) -> int:
    """Of the forward pass per token and head, when each token meets the C of its chunk.

    `2 C (D_k + D_v)` are pairs of tokens, scores and scores times v, and `4 D_k D_v` the state,
    into it and out of it. Pairs above the diagonal count: they are computed.
    """
    return 2 * C * (D_k + D_v) + 4 * D_k * D_v


def chunkwise_flops(T: int, D_k: int, D_v: int) -> int:
    """Of the chunkwise form per token and head, in a row of T tokens, with its own chunk."""
    return product_flops(min(default_chunk_size(D_k, D_v), T), D_k, D_v)
