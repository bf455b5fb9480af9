"""Products with an activated gate, `act(a) b`: gated linear units, and retention's gated head norm.

Both keep their arguments and the norm's factors, and compute the activation anew in the backward
pass, a block of tokens at a time while it is in the cache. With `h = act(a) y` and a gradient g of
h: `d_a = g y act'(a)` and `d_y = g act(a)`; how d_y becomes the gradient of what a norm made y of
is derived in `retnet.ops.norm`. The result itself is computed again for the product that reads it.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from retnet.ops.blocks import blocks
from retnet.ops.norm import rms_norm
from retnet.ops.recompute import can_recompute, read_saved, take_saved

Activation = Literal["swish", "gelu", "relu", "sigmoid"]


class _Function(NamedTuple):
    """An activation: as it is, into a tensor, and its gradient from that of its result."""

    plain: Callable[[Tensor], Tensor]
    into: Callable[[Tensor, Tensor], object]
    backward: Callable[[Tensor, Tensor, Tensor], object]


_aten = torch.ops.aten
ACTIVATIONS: dict[str, _Function] = {
    "swish": _Function(
        F.silu,
        lambda a, out: _aten.silu.out(a, out=out),
        lambda g, a, out: _aten.silu_backward.grad_input(g, a, grad_input=out),
    ),
    "gelu": _Function(
        F.gelu,
        lambda a, out: _aten.gelu.out(a, out=out),
        lambda g, a, out: _aten.gelu_backward.grad_input(g, a, grad_input=out),
    ),
    "relu": _Function(
        F.relu,
        lambda a, out: torch.clamp(a, min=0, out=out),
        lambda g, a, out: torch.mul(g, a > 0, out=out),
    ),
    "sigmoid": _Function(
        torch.sigmoid,
        lambda a, out: torch.sigmoid(a, out=out),
        lambda g, a, out: _aten.sigmoid_backward.grad_input(g, a.sigmoid(), grad_input=out),
    ),
}


def activate(a: Float[Tensor, "*rows D"], activation: Activation) -> Float[Tensor, "*rows D"]:
    """`act(a)`."""
    return ACTIVATIONS[activation].plain(a)


def gated(
    a: Float[Tensor, "*rows D"], b: Float[Tensor, "*rows D"], activation: Activation = "swish"
) -> Float[Tensor, "*rows D"]:
    """`act(a) * b`, of two tensors of one dtype."""
    if not torch.is_grad_enabled():
        return activate(a, activation) * b
    return _Gated.apply(a, b, ACTIVATIONS[activation])


def gated_rms_norm(
    o: Float[Tensor, "*rows D_v"],
    gate: Float[Tensor, "*rows D_v"],
    eps: float | Float[Tensor, "*#rows 1"],
) -> Float[Tensor, "*rows D_v"]:
    """`swish(gate) * o / sqrt(mean(o^2) + eps)`, in the gate's dtype.

    Args:
        o: any dtype and memory order; its gradient has both.
        gate: what swish is taken of.
        eps: one for all, or one for each token and head.
    """
    if not torch.is_grad_enabled():
        return F.silu(gate) * rms_norm(o, None, eps).to(gate.dtype)
    return _GatedRMSNorm.apply(o, gate, eps)


def _product(a: Tensor, b: Tensor, act: _Function) -> Tensor:
    h = torch.empty_like(a)
    for a_b, b_b, h_b in blocks(a, b, h):
        act.into(a_b, h_b)
        h_b.mul_(b_b)
    return h


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, act: _Function) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.act = act
        h = _product(a, b, act)
        can_recompute(ctx, _Gated.recompute, h)
        return h

    @staticmethod
    def recompute(ctx: Any, _output: int) -> Tensor:
        a, b = read_saved(ctx)
        return _product(a, b, ctx.act)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, b = take_saved(ctx)
        d_a, d_b = torch.empty_like(a), torch.empty_like(b)
        for g, a_b, b_b, d_a_b, d_b_b, gb in blocks(grads[0], a, b, d_a, d_b, scratch=[a.dtype]):
            torch.mul(g, b_b, out=gb)
            ctx.act.backward(gb, a_b, d_a_b)
            ctx.act.into(a_b, d_b_b)
            d_b_b.mul_(g)
        return d_a, d_b, None


def _normed_product(o: Tensor, inverse: Tensor, gate: Tensor, h: Tensor, y: Tensor) -> None:
    """`swish(gate) * (inverse * o)` into h, by way of y."""
    torch.mul(o, inverse, out=y)
    _aten.silu.out(gate, out=h)
    h.mul_(y)


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, o: Tensor, gate: Tensor, eps: float | Tensor) -> Tensor:
        exact = torch.float64 if o.dtype == torch.float64 else torch.float32
        eps_rows = eps.expand(*o.shape[:-1], 1) if isinstance(eps, Tensor) else None
        inverse = torch.empty(*o.shape[:-1], 1, dtype=o.dtype, device=o.device)
        h = torch.empty_like(gate)
        for o_b, gate_b, eps_b, inverse_b, h_b, y in blocks(
            o, gate, eps_rows, inverse, h, scratch=[gate.dtype]
        ):
            length = torch.linalg.vector_norm(o_b, dim=-1, keepdim=True, dtype=exact)
            mean = length.square_().div_(o.shape[-1])
            inverse_b.copy_((mean + (eps if eps_b is None else eps_b)).rsqrt_())
            _normed_product(o_b, inverse_b, gate_b, h_b, y)
        ctx.save_for_backward(o, gate, inverse)
        can_recompute(ctx, _GatedRMSNorm.recompute, h)
        return h

    @staticmethod
    def recompute(ctx: Any, _output: int) -> Tensor:
        o, gate, inverse = read_saved(ctx)
        h = torch.empty_like(gate)
        for of_block in blocks(o, inverse, gate, h, scratch=[gate.dtype]):
            _normed_product(*of_block)
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        o, gate, inverse = take_saved(ctx)
        d_o, d_gate = torch.empty_like(o), torch.empty_like(gate)
        for g, o_b, gate_b, inverse_b, d_o_b, d_gate_b, y, gy in blocks(
            grads[0], o, gate, inverse, d_o, d_gate, scratch=[gate.dtype] * 2
        ):
            torch.mul(o_b, inverse_b, out=y)
            torch.mul(g, y, out=gy)
            _aten.silu_backward.grad_input(gy, gate_b, grad_input=d_gate_b)
            u = _aten.silu.out(gate_b, out=gy).mul_(g)  # gradient of y
            along = torch.linalg.vecdot(u, y)[..., None].div_(o.shape[-1])
            u.addcmul_(y, along, value=-1)
            torch.mul(u, inverse_b, out=d_o_b)
        return d_o, d_gate, None
