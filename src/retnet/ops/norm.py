"""Root-mean-square norm over the last dimension, with its gradient written out.

With `r = 1 / sqrt(mean(x^2) + eps)` and `y = r x`, the norm is `w y`. Its differential is
`w dy`, and `dy = r (dx - y mean(y dx))`, because `dr = -r^3 mean(x dx)`. Hence for a gradient g of
the result `d_w = sum over rows of g y` and, with `u = g w`, `d_x = r (u - y mean(u y))`.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops.blocks import blocks, is_brief
from retnet.ops.recompute import can_recompute, read_saved, take_saved


def rms_norm(
    x: Float[Tensor, "*rows D"],
    weight: Float[Tensor, " D"] | None,
    eps: float | Float[Tensor, "*#rows 1"],
) -> Float[Tensor, "*rows D"]:
    """`x / sqrt(mean(x^2) + eps) * weight`, the mean in float32 or better.

    PyTorch's own makes 4 times the passes over memory on a CPU and knows one eps for all rows.

    Args:
        x: any dtype; the result has the same.
        weight: None for ones.
        eps: one for all rows, or one for each.

    Source:
        Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    if is_brief(x):
        return normalized(x, weight, eps)
    return _AddRMSNorm.apply(x, None, weight, eps, x.dtype)[1]


def add_rms_norm(
    x: Float[Tensor, "*rows D"],
    y: Float[Tensor, "*rows D"] | None,
    weight: Float[Tensor, " D"] | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "*rows D"], Float[Tensor, "*rows D"]]:
    """The residual stream x + y, and its norm: one pass over memory each way.

    Args:
        x: the residual stream; the sum has its dtype.
        y: what a branch adds to it; None for nothing: the stream is returned as it is.
        weight: None for ones.
        eps: of the norm.
        dtype: of the norm's result; the norm itself is computed in x's.
    """
    if is_brief(x):
        x = x if y is None else (x + y).to(x.dtype)
        return x, normalized(x, weight, eps).to(dtype)
    return _AddRMSNorm.apply(x, y, weight, eps, dtype)


def normalized(
    x: Float[Tensor, "*rows D"],
    weight: Float[Tensor, " D"] | None,
    eps: float | Float[Tensor, "*#rows 1"],
) -> Float[Tensor, "*rows D"]:
    """`rms_norm` in as few calls as there are; without a gradient of its own.

    `sqrt(mean(x^2) + eps)` is the hypotenuse of `|x| / sqrt(D)` and `sqrt(eps)`: one call for four.
    """
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
    side = eps.to(exact).sqrt() if isinstance(eps, Tensor) else _root(eps, exact, x.device)
    y = x / torch.hypot(length.mul_(x.shape[-1] ** -0.5), side).to(x.dtype)
    return y if weight is None else y * weight.to(x.dtype)


@cache
def _root(eps: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((), eps, dtype=dtype, device=device).sqrt_()


def _scale(x: Tensor, inverse: Tensor, w: Tensor | None, normed: Tensor, scaled: Tensor) -> None:
    """`w (inverse x)` into `normed`, by way of `scaled`."""
    if w is None:
        torch.mul(x, inverse, out=normed)
    else:
        torch.mul(torch.mul(x, inverse, out=scaled), w, out=normed)


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        weight: Tensor | None,
        eps: float | Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        total = x if y is None else torch.empty_like(x)
        eps_rows = eps.expand(*x.shape[:-1], 1) if isinstance(eps, Tensor) else None
        normed = torch.empty_like(x, dtype=dtype)
        inverse = torch.empty(*x.shape[:-1], 1, dtype=x.dtype, device=x.device)
        w = None if weight is None else weight.to(x.dtype)
        for x_b, y_b, total_b, eps_b, inverse_b, normed_b, scaled_b in blocks(
            x, y, total, eps_rows, inverse, normed, scratch=[x.dtype]
        ):
            if y_b is not None and y_b.dtype == x_b.dtype:
                torch.add(x_b, y_b, out=total_b)
            elif y_b is not None:
                total_b.copy_(y_b).add_(x_b)  # faster than adding two dtypes
            length = torch.linalg.vector_norm(total_b, dim=-1, keepdim=True, dtype=exact)
            mean = length.square_().div_(x.shape[-1])
            inverse_b.copy_((mean + (eps if eps_b is None else eps_b)).rsqrt_())
            _scale(total_b, inverse_b, w, normed_b, scaled_b)
        ctx.save_for_backward(total, inverse, weight)
        ctx.set_materialize_grads(False)
        ctx.dtypes = x.dtype, None if y is None else y.dtype
        ctx.normed_dtype = dtype
        can_recompute(ctx, _AddRMSNorm.recompute, total, normed)
        return total, normed

    @staticmethod
    def recompute(ctx: Any, output: int) -> Tensor:
        total, inverse, weight = read_saved(ctx)
        if output == 0:
            return total
        normed = torch.empty_like(total, dtype=ctx.normed_dtype)
        w = None if weight is None else weight.to(total.dtype)
        for total_b, inverse_b, normed_b, scaled_b in blocks(
            total, inverse, normed, scratch=[total.dtype]
        ):
            _scale(total_b, inverse_b, w, normed_b, scaled_b)
        return normed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_total, d_normed = grads
        total, inverse, weight = take_saved(ctx)
        x_dtype, y_dtype = ctx.dtypes
        if d_normed is None:
            d_y = None if d_total is None or y_dtype is None else d_total.to(y_dtype)
            return d_total, d_y, None, None, None
        d_x = torch.empty_like(total)
        d_y = None
        if y_dtype is not None:
            d_y = d_x if y_dtype == x_dtype else torch.empty_like(d_x, dtype=y_dtype)
        d_weight = None
        if weight is not None:
            exact = torch.promote_types(weight.dtype, torch.float32)
            d_weight = torch.zeros_like(weight, dtype=exact)
        w = None if weight is None else weight.to(x_dtype)
        for total_b, inverse_b, g_b, d_total_b, d_x_b, d_y_b, g, u, gu in blocks(
            total, inverse, d_normed, d_total, d_x, d_y, scratch=[x_dtype] * 3
        ):
            g.copy_(g_b)
            torch.mul(total_b, inverse_b, out=u)  # the unit that the derivation calls y
            torch.mul(g, u, out=gu)
            if d_weight is not None:
                d_weight += gu.reshape(-1, gu.shape[-1]).sum(0, dtype=d_weight.dtype)
                g.mul_(w)
                torch.mul(g, u, out=gu)
            g.addcmul_(u, gu.mean(-1, keepdim=True), value=-1)
            if d_total_b is None:
                torch.mul(g, inverse_b, out=d_x_b)
            else:
                torch.addcmul(d_total_b, g, inverse_b, out=d_x_b)
            if d_y_b is not None and d_y_b is not d_x_b:
                d_y_b.copy_(d_x_b)
        if weight is not None and d_weight is not None:
            d_weight = d_weight.to(weight.dtype)
        return d_x, d_y, d_weight, None, None
