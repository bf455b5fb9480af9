"""The forms of a diagonal linear recurrence; README.md derives them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from retnet.ops.blocks import blocks


def recurrent(a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token after the other: the definition, and the reference of every other form."""
    h = state
    all_h = []
    for a_t, b_t in zip(_factors(a, b, 1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        all_h.append(h)
    return torch.stack(all_h, 1), h


def parallel(a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Doubling: after each pass h_t holds twice as many tokens; log2(T) passes over all of them."""
    per_token = a.ndim == b.ndim
    first = (a[:, :1] if per_token else a) * state[:, None] + b[:, :1]
    h = torch.cat([first, b[:, 1:]], 1)
    a = a if per_token else _wide(a)
    reach = 1  # tokens that h_t holds, and over which `a` reaches back
    while reach < b.shape[1]:
        late = a[:, reach:] if per_token else a.to(h.dtype)
        h = torch.cat([h[:, :reach], late * h[:, :-reach] + h[:, reach:]], 1)
        a = torch.cat([a[:, :reach], late * a[:, :-reach]], 1) if per_token else a * a
        reach *= 2
    return h, h[:, -1].clone()


def chunkwise(a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token in all blocks at once, after the state that enters each block is known."""
    return _Chunkwise.apply(a, b, state)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "parallel": parallel,
    "recurrent": recurrent,
    "chunkwise": chunkwise,
}


class _Chunkwise(torch.autograd.Function):
    """Keeps a and h only: the gradient is the same recurrence, backwards in time."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.empty_like(b, memory_format=torch.contiguous_format)
        scan_(a, b, state, h)
        ctx.save_for_backward(a, h, state)
        return h, h[:, -1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_h, d_final = grads
        a, h, state = ctx.saved_tensors
        per_token, conj = a.ndim == h.ndim, a.conj().resolve_conj()
        g = torch.empty_like(h)  # gradient of b, and of all that flows into h_t
        torch.add(d_h[:, -1], d_final, out=g[:, -1])
        if h.shape[1] > 1:
            later = conj[:, 1:] if per_token else conj
            scan_(later, d_h[:, :-1], g[:, -1], g[:, :-1], reverse=True)
        d_state = (conj[:, 0] if per_token else conj) * g[:, 0]
        d_a = None
        if ctx.needs_input_grad[0]:
            first = g[:, 0] * state.conj()
            if per_token:
                d_a = torch.empty_like(g)
                d_a[:, 0] = first
                torch.mul(g[:, 1:], h[:, :-1].conj(), out=d_a[:, 1:])
            else:
                d_a = first.sum(0)
                for g_b, h_b, product in blocks(g[:, 1:], h[:, :-1], scratch=[g.dtype]):
                    d_a += torch.mul(g_b, h_b.conj(), out=product).sum((0, 1))
        return d_a, g, d_state


def block_length(T: int) -> int:
    """Tokens of a block, a power of two: few, so that one call works on many blocks.

    A scan makes two calls for each token of a block, which work on all blocks, and one small call
    for each block; half the root of T is fastest on the CPUs measured.
    """
    return 1 << max(0, round(math.log2(T) / 2) - 1)


def scan_(a: Tensor, b: Tensor, state: Tensor, h: Tensor, *, reverse: bool = False) -> None:
    """Write `h_t = a_t h_(t-1) + b_t` into h; in reverse `h_t = a_t h_(t+1) + b_t`.

    Blocks of tokens take three steps: what each makes of the state that enters it, one token of
    all blocks at a time; from that the states that enter, block by block; and with them h itself,
    again one token of all blocks at a time. The tokens that fill no block come last.
    """
    T = b.shape[1]
    C = block_length(T)
    ragged = T % C
    whole, rest = (
        (slice(ragged, T), slice(0, ragged))
        if reverse
        else (slice(0, T - ragged), slice(T - ragged, T))
    )
    if C > 1:
        state = _blocks(_tokens_of(a, b, whole), b[:, whole], state, h[:, whole], C, reverse)
    else:
        rest = slice(0, T)
    _step_by_step(_tokens_of(a, b, rest), b[:, rest], state, h[:, rest], 1, reverse)


def _blocks(a: Tensor, b: Tensor, state: Tensor, h: Tensor, C: int, reverse: bool) -> Tensor:
    """Blocks of C tokens; gives the state that leaves the last."""
    per_token = a.ndim == b.ndim
    a = a.unflatten(1, (-1, C)) if per_token else a
    b, h = b.unflatten(1, (-1, C)), h.unflatten(1, (-1, C))  # B blocks C *N
    steps = _ordered(zip(_factors(a, b, 2), b.unbind(2), strict=True), reverse)
    product, end = (x.clone() for x in steps[0])  # a block makes `end + product * state` of a state
    for a_c, b_c in steps[1:]:
        torch.addcmul(b_c, a_c, end, out=end)
        if per_token:
            product.mul_(a_c)
    product = product if per_token else _power(a, C)
    states = end.new_empty(end.shape[0], end.shape[1] + 1, *end.shape[2:])  # at blocks' borders
    enter, leave = (states[:, 1:], states[:, :-1]) if reverse else (states[:, :-1], states[:, 1:])
    states[:, -1 if reverse else 0] = state
    _step_by_step(product, end, state, leave, 1, reverse)
    _step_by_step(a, b, enter, h, 2, reverse)
    return states[:, 0 if reverse else -1]


def _power(a: Tensor, C: int) -> Tensor:
    """a to the C, a power of two."""
    power = _wide(a)
    for _ in range(C.bit_length() - 1):
        power = power * power
    return power.to(a.dtype)


def _wide(a: Tensor) -> Tensor:
    """Twice the digits: every block would repeat the same rounding error of a power of a."""
    return a.to(torch.complex128 if a.is_complex() else torch.float64)


def _step_by_step(a: Tensor, b: Tensor, state: Tensor, h: Tensor, axis: int, reverse: bool) -> None:
    """The recurrence along an axis, in place."""
    steps = zip(_factors(a, b, axis), b.unbind(axis), h.unbind(axis), strict=True)
    for a_t, b_t, h_t in _ordered(steps, reverse):
        torch.addcmul(b_t, a_t, state, out=h_t)
        state = h_t


def _ordered(steps: Any, reverse: bool) -> list[tuple[Tensor, ...]]:
    in_order = list(steps)
    return in_order[::-1] if reverse else in_order


def _factors(a: Tensor, b: Tensor, axis: int) -> Sequence[Tensor]:
    """The factor of each step along an axis: its own, or one for all."""
    return a.unbind(axis) if a.ndim == b.ndim else [a] * b.shape[axis]


def _tokens_of(a: Tensor, b: Tensor, tokens: slice) -> Tensor:
    return a[:, tokens] if a.ndim == b.ndim else a
