"""Rotary position in its most general form: `R_n = exp(n B)` with any skew matrix B.

`R_i^T R_j = R_(j-i)` needs no more than that. Every such B is a block rotation in another basis,
B = P L P^T, so between linear layers and a product nothing is gained: `W_q` and `W_k` can absorb P.
It does something new where a function that is not linear comes between.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retnet.ops.rotation import PairLayout


def block_generator(
    frequencies: Float[Tensor, " pairs"], pairs: PairLayout
) -> Float[Tensor, "D D"]:
    """Half of the B that turns pairs as RoPE does: B = A - A^T for the A returned."""
    count = len(frequencies)
    first = torch.arange(count, device=frequencies.device)
    a, b = (2 * first, 2 * first + 1) if pairs == "interleaved" else (first, first + count)
    half = frequencies.new_zeros(2 * count, 2 * count)
    half[b, a] = frequencies
    return half


def turns(generator: Float[Tensor, "H D D"], bits: int) -> list[Float[Tensor, "H D D"]]:
    """`exp(2^b B)` for b below `bits`, in float64: with them every position is a few products."""
    turn = torch.matrix_exp(generator.double())
    powers = [turn]
    for _ in range(bits - 1):
        powers.append(powers[-1] @ powers[-1])
    return powers[:bits]


def turned_by(
    x: Float[Tensor, "B T H D"],
    positions: Int[Tensor, "rows T"],
    powers: list[Float[Tensor, "H D D"]],
) -> Float[Tensor, "B T H D"]:
    """`R_n x` of every head, n the token's position below `2^len(powers)`.

    Source:
        Su 2023, kexue.fm/archives/9403.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide)
    for b, turn in enumerate(powers):
        moved = torch.einsum("bthd,hed->bthe", y, turn.to(wide))
        y = torch.where((positions >> b & 1).bool()[..., None, None], moved, y)
    return y.to(x.dtype)
