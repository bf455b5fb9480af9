"""Blocks of tokens that fit a CPU's cache: several operations then cost one pass over memory."""

from collections.abc import Iterator

from torch import Tensor

BLOCK_ELEMENTS = 1 << 18
"""Of the largest tensor: half a megabyte in 16 bits, so that a handful fits a core's cache."""


def blocks(*tensors: Tensor | None) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same tokens of all tensors, some tokens at a time, in order.

    Off the CPU there is one block, all tokens: launches cost more there than passes.

    Args:
        tensors: (B, T, ...), equal in T; (rows, D) and (D,) work as well. None stays None.
    """
    given = [t for t in tensors if t is not None]
    largest = max(given, key=Tensor.numel)
    if largest.device.type != "cpu" or largest.numel() <= BLOCK_ELEMENTS:
        yield tensors  # type: ignore[misc]  (None stays None)
        return
    dim = min(1, largest.ndim - 2)
    size = max(1, BLOCK_ELEMENTS * largest.shape[dim] // largest.numel())
    for start in range(0, largest.shape[dim], size):
        length = min(size, largest.shape[dim] - start)
        yield tuple(t if t is None else t.narrow(dim, start, length) for t in tensors)  # type: ignore[misc]
