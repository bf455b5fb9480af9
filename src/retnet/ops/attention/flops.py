"""Operations of attention's matrix products, a multiplication and an addition as two."""


def causal_flops(T: int, D_k: int, D_v: int) -> int:
    """Of the forward pass per token and head, in a row of T tokens: scores, and scores times v.

    Pairs above the diagonal count, as is the custom for attention, though kernels skip most.
    """
    return 2 * T * (D_k + D_v)
