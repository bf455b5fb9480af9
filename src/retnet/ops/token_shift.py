"""Token shift: each token mixed with the one before it, channel by channel (RWKV)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops.blocks import blocks, is_brief
from retnet.ops.layout import Layout
from retnet.ops.previous import previous_tokens


def token_shift(
    h: Float[Tensor, "B T D"],
    last: Float[Tensor, "B D"] | None,
    layout: Layout,
    *mixes: Float[Tensor, " D"],
) -> tuple[tuple[Float[Tensor, "B T D"], ...], Float[Tensor, "B D"]]:
    """`m h_t + (1 - m) h_(t-1)` for each m of `mixes`, which is unbounded.

    Zeros stand before the first token of a document; padding is skipped.

    Args:
        h: tokens.
        last: the token before the first, float32 or better; None at the start of a sequence.
        layout: of these tokens.
        mixes: the current token's weight in each channel.

    Returns:
        A mixture for each of `mixes`, and what `last` is for the tokens after these.

    Source:
        Peng et al. 2023, arXiv:2305.13048, equations 11 to 13.
    """
    carried = None if last is None else last[:, None]
    [before], after = previous_tokens(h, 1, carried, layout=layout)
    if is_brief(h):
        return tuple(torch.lerp(before, h, mix.to(h.dtype)) for mix in mixes), after[:, 0]
    return _ShiftMix.apply(h, before, *mixes), after[:, 0]


class _ShiftMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, before: Tensor, *mixes: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(h, before, *mixes)
        weights = [mix.to(h.dtype) for mix in mixes]
        mixed = tuple(torch.empty_like(h) for _ in mixes)
        for h_b, before_b, *outs in blocks(h, before, *mixed):
            for weight, out in zip(weights, outs, strict=True):
                torch.lerp(before_b, h_b, weight, out=out)
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        h, before, *mixes = ctx.saved_tensors
        weights = [mix.to(h.dtype) for mix in mixes]
        exact = torch.promote_types(h.dtype, torch.float32)
        d_mixes = [torch.zeros_like(mix, dtype=exact) for mix in mixes]
        d_h, d_before = torch.empty_like(h), torch.empty_like(h)
        for h_b, before_b, d_h_b, d_before_b, *gs in blocks(
            h, before, d_h, d_before, *grads, scratch=[h.dtype] * 2
        ):
            *gs, difference, product = gs
            torch.sub(h_b, before_b, out=difference)
            torch.mul(gs[0], weights[0], out=d_h_b)
            d_before_b.copy_(gs[0])
            for i, g in enumerate(gs):
                d_mixes[i] += torch.mul(g, difference, out=product).sum((0, 1), dtype=exact)
                if i:
                    d_h_b.addcmul_(g, weights[i])
                    d_before_b += g
            d_before_b -= d_h_b
        of_mixes = (d.to(mix.dtype) for d, mix in zip(d_mixes, mixes, strict=True))
        return d_h, d_before, *of_mixes
