"""Token shift: each token mixed with the one before it, channel by channel (RWKV)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops.blocks import blocks, is_brief
from retnet.ops.layout import Layout


def previous(
    h: Float[Tensor, "B T D"], last: Float[Tensor, "B D"], layout: Layout
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D"]]:
    """The token before each one, and the last of all in the dtype of `last`.

    Zeros stand before the first token of a document. Padding is skipped: before a token stands
    the real one before it.

    Args:
        h: tokens.
        last: the token before the first; zeros where a row begins.
        layout: of these tokens.
    """
    T = h.shape[1]
    if T == 0:
        return h, last
    if layout.valid is None:
        before = torch.cat((last[:, None].to(h.dtype), h[:, :-1]), 1)
        last = h[:, -1].to(last.dtype)
    else:
        numbers = torch.arange(1, T + 1, device=h.device)  # 0 is `last`
        real = (numbers * layout.valid).cummax(1).values  # B T, latest up to and with each
        index = torch.cat((real.new_zeros(len(h), 1), real), 1)[..., None].expand(
            -1, -1, h.shape[2]
        )
        all_ = torch.cat((last[:, None], h.to(last.dtype)), 1)
        before = all_.gather(1, index[:, :-1]).to(h.dtype)
        last = all_.gather(1, index[:, -1:])[:, 0]
    if layout.starts is not None:
        before = before.masked_fill(layout.starts[..., None], 0.0)
    return before, last


def shift_mix(
    h: Float[Tensor, "B T D"], before: Float[Tensor, "B T D"], *mixes: Float[Tensor, " D"]
) -> tuple[Float[Tensor, "B T D"], ...]:
    """`m h + (1 - m) before` for each m of `mixes`, which is unbounded.

    Source:
        Peng et al. 2023, arXiv:2305.13048, equations 11 to 13.
    """
    if is_brief(h):
        return tuple(torch.lerp(before, h, mix.to(h.dtype)) for mix in mixes)
    return _ShiftMix.apply(h, before, *mixes)


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
