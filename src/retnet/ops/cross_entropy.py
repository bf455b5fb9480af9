"""Cross-entropy of a linear head, some rows at a time, so that no (tokens, V) tensor exists."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100
"""Target of a place that does not count, as in PyTorch."""

CHUNK_ELEMENTS = 1 << 20
"""Logits computed at once: few enough to stay in a CPU's cache."""

CHUNKS_TOGETHER = 8
"""Chunks whose products are computed at once: large ones are quicker, and what they add to the
head's gradient is added up in float32 less often."""

GPU_CHUNK_ELEMENTS = 1 << 28
"""Logits computed at once on a GPU, which needs large products: a GiB in float32."""


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
    if not torch.is_grad_enabled():  # a parameter would have its gradient computed all the same
        h, weight = h.detach(), weight.detach()
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
        minus_one = h.new_full((), -1, dtype=exact)
        elements, chunks = (
            (GPU_CHUNK_ELEMENTS, 1) if h.is_cuda else (CHUNK_ELEMENTS, CHUNKS_TOGETHER)
        )
        rows = max(1, elements // len(weight))
        together = rows * chunks
        logits = h.new_empty(min(rows, len(h)), len(weight), dtype=exact)
        products = h.new_empty(min(together, len(h)), len(weight))
        for h_g, targets_g, d_h_g in zip(
            h.split(together), targets.split(together), _split(d_h, h, together), strict=True
        ):
            p = torch.mm(h_g, weight.mT, out=products[: len(h_g)])
            for p_c, targets_c in zip(p.split(rows), targets_g.split(rows), strict=True):
                counts = (targets_c != IGNORED)[:, None]
                places = targets_c[:, None].where(counts, 0)  # any other negative id must fail
                z = logits[: len(p_c)].copy_(p_c)  # rows V
                torch.log_softmax(z, -1, out=z)
                total -= (z.gather(-1, places) * counts).sum()
                if d_h is not None or d_weight is not None:
                    z.exp_().scatter_add_(-1, places, minus_one.expand_as(places))
                    p_c.copy_(z)
            counts = (targets_g != IGNORED)[:, None]
            if d_h_g is not None:
                torch.mm(p, weight, out=d_h_g).mul_(counts)
            if d_weight is not None:
                d_weight += p.mT @ (h_g * counts)
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


def _split(x: Tensor | None, h: Tensor, rows: int) -> tuple[Tensor | None, ...]:
    """Views of some rows at a time, as many as h has; None for each if there are none."""
    return (None,) * len(h.split(rows)) if x is None else x.split(rows)
