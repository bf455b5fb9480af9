"""Cross-entropy of a linear head, some rows at a time, so that no (tokens, V) tensor exists."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100
"""Target of a place that does not count, as in PyTorch."""

CHUNK_ELEMENTS = 1 << 20
"""Logits computed at once: few enough to stay in a CPU's cache."""


def linear_cross_entropy(
    h: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Sum over rows of `-log softmax(h weight^T)[target]`, in float32 or better.

    The gradient is computed along with the value, while a chunk's logits are at hand, and kept
    as (N, D) and (V, D): memory for logits does not depend on N.

    Args:
        h: hidden vectors; under autocast the products are in its dtype.
        weight: of the head.
        targets: token ids; `IGNORED` where nothing is asked.
    """
    device = h.device.type
    dtype = h.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(h.to(dtype), weight.to(dtype), targets)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        exact = torch.float64 if h.dtype == torch.float64 else torch.float32
        total = h.new_zeros((), dtype=exact)
        d_h = torch.zeros_like(h) if ctx.needs_input_grad[0] else None
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = torch.zeros_like(weight, dtype=exact)
        rows = max(1, CHUNK_ELEMENTS // len(weight))
        for h_c, targets_c, out in zip(
            h.split(rows), targets.split(rows), _split(d_h, h, rows), strict=True
        ):
            counts = (targets_c != IGNORED)[:, None]
            places = targets_c[:, None].where(counts, 0)  # any other negative id must fail
            p = (h_c @ weight.mT).to(exact)  # rows V
            top = p.amax(-1, keepdim=True)
            p -= top
            chosen = p.gather(-1, places)
            norm = p.exp_().sum(-1, keepdim=True)
            total += ((norm.log() - chosen) * counts).sum()
            if d_h is None and d_weight is None:
                continue
            p *= counts / norm  # softmax, zero where nothing is asked
            p.scatter_add_(-1, places, -counts.to(exact))
            p = p.to(h.dtype)
            if out is not None:
                torch.mm(p, weight, out=out)
            if d_weight is not None:
                d_weight += p.mT @ h_c
        ctx.save_for_backward(d_h, d_weight)
        ctx.dtypes = h.dtype, weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_h, d_weight = (
            None if d is None else (d * grads[0]).to(dtype)
            for d, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return d_h, d_weight, None


def _split(d_h: Tensor | None, h: Tensor, rows: int) -> tuple[Tensor | None, ...]:
    """Views of the gradient's rows, chunk by chunk."""
    return (None,) * len(h.split(rows)) if d_h is None else d_h.split(rows)
