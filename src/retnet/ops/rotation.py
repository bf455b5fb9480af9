"""Rotary position: turn each pair of channels by an angle proportional to the token's position."""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retnet.ops.blocks import blocks

Theta = Literal["linspace", "rope", "none"]
PairLayout = Literal["interleaved", "half"]


def frequencies(
    theta: Theta, width: int, base: float = 10_000.0, device: torch.device | None = None
) -> Float[Tensor, " pairs"]:
    """Angle per token of each channel pair, float64; `base` is 10000 in the sources.

    They are made on `device`: a copy from the CPU would make a GPU's host wait.

    `rope`: 10000^(-2i/width) (Su et al. 2021, arXiv:2104.09864). `linspace`: the exponents reach
    -1 inclusive, 10000^(-i/(width/2 - 1)), as in the official RetNet code. The two tables differ
    by up to 7 % at width 256, so a checkpoint is tied to its own.
    """
    pairs = width // 2
    i = torch.arange(pairs, dtype=torch.float64, device=device)
    exponent = 2 * i / width if theta == "rope" else i / max(pairs - 1, 1)
    return base**-exponent


def rotation_tables(
    positions: Int[Tensor, "rows T"],
    theta: Theta,
    width: int,
    dtype: torch.dtype,
    base: float = 10_000.0,
) -> tuple[Float[Tensor, "rows T 1 pairs"], Float[Tensor, "rows T 1 pairs"]]:
    """Cosine and sine of every token's angles.

    Angles are float64, because float32 loses 0.06 rad at position 1,000,000; only the finished
    tables are rounded to `dtype`.
    """
    return turning_tables(positions, frequencies(theta, width, base, positions.device), dtype)


def turning_tables(
    positions: Int[Tensor, "rows T"] | Float[Tensor, "rows T"],
    frequencies: Float[Tensor, " pairs"],
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "rows T 1 pairs"], Float[Tensor, "rows T 1 pairs"]]:
    """`rotation_tables` of any frequencies, in float64, and positions that need not be whole."""
    angles = positions.double()[..., None, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(
    x: Float[Tensor, "B T H D_k"],
    cos: Float[Tensor, "rows T 1 pairs"],
    sin: Float[Tensor, "rows T 1 pairs"],
    pairs: PairLayout,
) -> Float[Tensor, "B T H D_k"]:
    """Turn pair (a, b) into (a cos - b sin, b cos + a sin).

    Args:
        x: queries or keys.
        cos: from `rotation_tables`; times a constant if x is to be scaled on the way.
        sin: likewise.
        pairs: `interleaved`: channels (2i, 2i+1); `half`: channels (i, i + D_k/2).

    Returns:
        The rotated tensor; its memory is (B, H, T, D_k), the order that retention computes in.
    """
    return _Rotate.apply(x, cos, sin, pairs)


def rotate_both(
    q: Float[Tensor, "B T H D_k"],
    k: Float[Tensor, "B T H D_k"],
    tables: tuple[Tensor, Tensor, Tensor, Tensor],
    pairs: PairLayout,
) -> tuple[Float[Tensor, "B T H D_k"], Float[Tensor, "B T H D_k"]]:
    """`rotate` queries and keys of one shape, by tables `(cos, sin)` for q, then for k.

    Their gradients lie side by side in memory, as the layers that made q and k want them.
    """
    return _RotateBoth.apply(q, k, pairs, *tables)


class _Rotate(torch.autograd.Function):
    """Two passes over memory instead of the five that autograd would record."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, pairs: PairLayout) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.pairs = pairs
        return _turn(x, cos, sin, pairs, _heads_first(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        d_x = _turn(grads[0], cos, -sin, ctx.pairs, torch.empty_like(grads[0]))
        return d_x, None, None, None


class _RotateBoth(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, pairs: PairLayout, *tables: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*tables)
        ctx.pairs = pairs
        cos, sin, k_cos, k_sin = tables
        return (
            _turn(q, cos, sin, pairs, _heads_first(q)),
            _turn(k, k_cos, k_sin, pairs, _heads_first(k)),
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_q, d_k = grads
        cos, sin, k_cos, k_sin = ctx.saved_tensors
        B, T, *rest = d_q.shape
        out_q, out_k = d_q.new_empty(B, T, 2, *rest).unbind(2)
        _turn(d_q, cos, -sin, ctx.pairs, out_q)
        _turn(d_k, k_cos, -k_sin, ctx.pairs, out_k)
        return out_q, out_k, *[None] * 5


def _heads_first(x: Tensor) -> Tensor:
    """An empty tensor of its shape whose memory is (B, H, T, D_k)."""
    B, T, H, D_k = x.shape
    return x.new_empty(B, H, T, D_k).transpose(1, 2)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, pairs: PairLayout, out: Tensor) -> Tensor:
    for x_b, cos_b, sin_b, out_b in blocks(x, cos, sin, out):
        a, b = _pair(x_b, pairs)
        out_a, out_b_ = _pair(out_b, pairs)
        torch.mul(a, cos_b, out=out_a)
        out_a.addcmul_(b, sin_b, value=-1)
        torch.mul(b, cos_b, out=out_b_)
        out_b_.addcmul_(a, sin_b)
    return out


def _pair(x: Tensor, pairs: PairLayout) -> tuple[Tensor, Tensor]:
    if pairs == "interleaved":
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]
