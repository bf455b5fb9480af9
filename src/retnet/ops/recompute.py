"""Inputs of products that are not kept for the backward pass, but computed again in it.

A product keeps its input for the gradient of its weights. Where that input came from a cheap
function, a norm or a gate, which keeps arguments of its own, the same values lie in memory twice
over. Such a function leaves `ctx.recompute` with its node in the graph; the product keeps the node
instead of the tensor, and asks it. The node is still whole then: its own turn comes later.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

Recompute = Callable[[Any, int], Tensor]
"""From a node and the number of one of its outputs to the values that this had."""


def recomputation(x: Tensor) -> Callable[[], Tensor] | None:
    """What computes x again in a backward pass; None if x had better be kept.

    Args:
        x: the output of a function that can, as it is or in another shape.
    """
    if torch.compiler.is_compiling():  # the compiler decides what to keep
        return None
    whole = x if x._base is None else x._base
    recompute: Recompute | None = getattr(whole.grad_fn, "recompute", None)
    if recompute is None or not _same_order(x, whole):
        return None
    again, shape = partial(recompute, whole.grad_fn, whole.output_nr), x.shape
    return lambda: again().view(shape)


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


def _same_order(x: Tensor, whole: Tensor) -> bool:
    return x is whole or (
        x.numel() == whole.numel() and x.is_contiguous() and whole.is_contiguous()
    )
