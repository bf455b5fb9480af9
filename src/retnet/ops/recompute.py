"""Inputs of products that are not kept for the backward pass, but computed again in it.

A product keeps its input for the gradient of its weights. Where that input came from a cheap
function, a norm or a gate, which keeps arguments of its own, the same values lie in memory twice
over. Such a function leaves with its node in the graph how its outputs are computed again; the
product keeps the node instead of the tensor, and asks it. The node is still whole then, since its
own turn comes later, unless a backward pass that left out the product has been there before.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Recompute = Callable[[Any, int], Tensor]
"""From a node and the number of one of its outputs to the values that this had."""


class _Made(NamedTuple):
    """How a node's outputs are computed again, and how often each had been written to by then."""

    again: Recompute
    versions: tuple[int, ...]


def can_recompute(ctx: Any, again: Recompute, *outputs: Tensor) -> None:
    """Say that a function's outputs can be had again; the last thing that its forward does.

    Args:
        ctx: of the function.
        again: computes one of them from what `ctx` has saved; see `read_saved`.
        outputs: all of them, in the order in which they are returned.
    """
    if torch.compiler.is_compiling():  # the compiler decides what to keep
        return
    versions = tuple(0 if output.is_inference() else output._version for output in outputs)
    ctx.made = _Made(again, versions)


def recomputation(x: Tensor) -> Callable[[], Tensor] | None:
    """What computes x again in a backward pass; None if x had better be kept.

    That is so for all but the outputs of functions that said so, as they were returned: views of
    them and what has been changed in place since are kept.
    """
    if torch.compiler.is_compiling():
        return None
    made: _Made | None = getattr(x.grad_fn, "made", None)
    if made is None or made.versions[x.output_nr] != x._version:
        return None
    return partial(made.again, x.grad_fn, x.output_nr)


def side_by_side(x: Float[Tensor, "B T H D"]) -> Float[Tensor, "B T H*D"]:
    """The heads of each token side by side, which can be computed again if x can."""
    again = recomputation(x)
    return x.flatten(2) if again is None else _SideBySide.apply(x, again)


class _SideBySide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, again: Callable[[], Tensor]) -> Tensor:
        ctx.shape, ctx.again = x.shape, again
        y = x.flatten(2).data  # no view: PyTorch lets no function's views be changed in place
        can_recompute(ctx, _SideBySide.recompute, y)
        return y

    @staticmethod
    def recompute(ctx: Any, _output: int) -> Tensor:
        return ctx.again().flatten(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0].view(ctx.shape), None


def read_saved(ctx: Any) -> tuple[Any, ...]:
    """What a node saved, for a recomputation; its own backward pass then has `take_saved`.

    Activation checkpointing lets every saved tensor be unpacked once. Detached, because a node
    that held one of its own outputs would hold itself.
    """
    if not hasattr(ctx, "unpacked"):
        ctx.unpacked = tuple(None if x is None else x.detach() for x in ctx.saved_tensors)
    return ctx.unpacked


def take_saved(ctx: Any) -> tuple[Any, ...]:
    """What a node saved, for its own backward pass, after which nobody asks."""
    if not hasattr(ctx, "unpacked"):
        return ctx.saved_tensors
    unpacked = ctx.unpacked
    del ctx.unpacked
    return unpacked
