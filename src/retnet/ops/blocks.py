"""Blocks of tokens that fit a CPU's cache: several operations then cost one pass over memory."""

from collections.abc import Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

BLOCK_BYTES = 1 << 20
"""Of the first tensor, shared by all cores, so that a handful of blocks fits their caches."""


BRIEF_ELEMENTS = 1 << 14


def is_brief(x: Tensor) -> bool:
    """Whether calls cost more than passes over memory, as where single tokens are decoded.

    Only without gradients: then the plain operations do, and autograd has nothing to keep.
    """
    return x.numel() <= BRIEF_ELEMENTS and not torch.is_grad_enabled()


def blocks(*tensors: Tensor | None, scratch: Sequence[torch.dtype] = ()) -> Iterator[list]:
    """Views of the same tokens of all tensors, some tokens at a time, in order.

    Off the CPU there is one block, all tokens: launches cost more there than passes.

    Args:
        tensors: (B, T, ...), equal in T; (rows, D) work as well, and (D,) as one block. None stays
            None. The first is one of the largest.
        scratch: for each dtype one more tensor of the first one's shape follows, whose memory
            every block uses again: it stays in the cache, where a new tensor would not be.
    """
    first = tensors[0]
    assert first is not None
    dim = max(0, min(1, first.ndim - 2))
    size = first.shape[dim] if first.ndim else 1
    if first.device.type == "cpu" and first.nbytes > BLOCK_BYTES and first.ndim > 1:
        size = max(1, BLOCK_BYTES * first.shape[dim] // first.nbytes)
    spare = [torch.empty_like(first.narrow(dim, 0, size), dtype=dtype) for dtype in scratch]
    views = [repeat(None) if t is None else t.split(size, dim) for t in tensors]
    for block in zip(*views, strict=False):
        length = block[0].shape[dim]  # type: ignore[union-attr]
        yield [*block, *(t.narrow(dim, 0, length) if length < size else t for t in spare)]
