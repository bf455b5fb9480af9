"""Products of one input with the weights of several linear layers, their gradient written out.

For `y = x W^T` and a gradient g of y, `d_x = g W` and `d_W = g^T x`. The last sums over all tokens:
both of its factors have that dimension first, the wrong way round for the left one, and on a CPU
the product in 16 bits then takes up to twice its time. Transposing x beforehand, in blocks, costs
less, above all when several layers share it. Weights of few rows are multiplied together, because
a product reaches its speed only when it is wide; all of them together would have to copy their
gradients side by side, which costs more than it gains. An x that can be had again is not kept:
see `retnet.ops.recompute`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from retnet.ops.recompute import recomputation

TRANSPOSED_ROWS = 256
"""Copied at a time by a transposition: few enough that a cache holds them."""

WIDE = 1024
"""Rows of a weight from which on its product gains nothing from being joined with others."""


def products(x: Float[Tensor, "... D"], *weights: Float[Tensor, "_ D"]) -> tuple[Tensor, ...]:
    """`x W^T` for each weight W, (width of the result, D); under autocast in its dtype.

    Raises:
        RuntimeError: in the backward pass, if x is the result of a norm or a gate whose own
            backward pass was made before this one, without `retain_graph`.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    x = x.to(dtype)
    if not torch.is_grad_enabled():
        return tuple(F.linear(x, weight.to(dtype)) for weight in weights)
    return _Products.apply(x, recomputation(x), *weights)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, again: Callable[[], Tensor] | None, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.groups = _groups([len(weight) for weight in weights])
        ctx.dtype, ctx.again = x.dtype, again
        kept = again is None and any(ctx.needs_input_grad[2:])
        # in place of x an empty one, for checkpointing counts what is saved and compares shapes;
        # weights as they are, not as rounded and joined
        ctx.save_for_backward(x if kept else x.new_empty(0), *weights)
        ys: list[Tensor] = []
        for group in ctx.groups:
            parts = [weights[i] for i in group]
            ys += F.linear(x, _join(parts, x.dtype)).split([len(part) for part in parts], -1)
        return tuple(ys)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, *weights = ctx.saved_tensors
        need_x, _, *need = ctx.needs_input_grad
        gs = [
            _side_by_side([grads[i].reshape(-1, grads[i].shape[-1]) for i in group])
            for group in ctx.groups
        ]
        d_x: Tensor | None = None
        d_weights: list[Tensor | None] = [None] * len(need)
        with torch.autocast(grads[0].device.type, enabled=False):
            if need_x:
                for group, g in zip(ctx.groups, gs, strict=True):
                    joint = _join([weights[i] for i in group], ctx.dtype)
                    d_x = g @ joint if d_x is None else d_x.addmm_(g, joint)
                assert d_x is not None
                d_x = d_x.view(*grads[0].shape[:-1], d_x.shape[-1])
            if any(need):
                x = x if ctx.again is None else ctx.again()
                rows = x.reshape(-1, x.shape[-1])  # also of one vector
                transposed = _transposed(rows) if _pays(rows, gs) else None
                for group, g in zip(ctx.groups, gs, strict=True):
                    if not any(need[i] for i in group):
                        continue
                    d_joint = _weight_gradient(g, rows, transposed)
                    parts = d_joint.split([len(weights[i]) for i in group])
                    for i, part in zip(group, parts, strict=True):
                        d_weight = torch.empty_like(
                            part, dtype=weights[i].dtype, memory_format=torch.contiguous_format
                        )
                        d_weights[i] = d_weight.copy_(part)
        return d_x, None, *d_weights


def _groups(widths: Sequence[int]) -> list[list[int]]:
    """Neighbours that are multiplied together: as few as make a product wide."""
    groups: list[list[int]] = []
    total = WIDE
    for i, width in enumerate(widths):
        if total >= WIDE or width >= WIDE:
            groups.append([])
            total = 0
        groups[-1].append(i)
        total += width
    return groups


def _join(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    rounded = [weight.to(dtype) for weight in weights]
    return rounded[0] if len(rounded) == 1 else torch.cat(rounded)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """`cat` of (rows, N_i) along N; without a copy if that is how they lie in memory."""
    first, width, end = parts[0], 0, parts[0].data_ptr()
    total = sum(part.shape[1] for part in parts)
    for part in parts:
        if part.stride() != (total, 1) or part.data_ptr() != end:
            return torch.cat(list(parts), 1)
        width += part.shape[1]
        end = part.data_ptr() + part.shape[1] * part.element_size()
    return first.as_strided((len(first), total), (total, 1))


def _weight_gradient(g: Tensor, x: Tensor, x_transposed: Tensor | None) -> Tensor:
    """`g^T x`, (N, D)."""
    if x_transposed is not None:
        return (x_transposed @ g).mT
    if g.device.type == "cpu" and g.dtype == torch.bfloat16:
        return _transposed(g) @ x
    return g.mT @ x


def _pays(x: Tensor, gs: Sequence[Tensor]) -> bool:
    """Whether to transpose x, the narrower factor, rather than each gradient."""
    if x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return False
    return x.shape[1] < sum(g.shape[1] for g in gs)


def _transposed(x: Tensor) -> Tensor:
    out = x.new_empty(x.shape[1], x.shape[0])
    for rows, columns in zip(x.split(TRANSPOSED_ROWS), out.split(TRANSPOSED_ROWS, 1), strict=True):
        columns.copy_(rows.mT)
    return out
