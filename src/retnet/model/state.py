"""What a decoder remembers of each row, and the operations that serve every mixer alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F


class DecoderState(NamedTuple):
    """One row per sequence in every tensor, whatever the mixers are.

    Attributes:
        position: tokens of the current document seen so far, int64.
        layers: for each layer, each branch's state: a NamedTuple of batch-first tensors or None.
    """

    position: Int[Tensor, " B"]
    layers: tuple[tuple[Any, ...], ...]


def select_rows(state: DecoderState, rows: Int[Tensor, " rows"] | Sequence[int]) -> DecoderState:
    """Rows of a batch in a new order; repeats fork a sequence, omissions drop it."""
    return _map(
        lambda leaf: leaf[torch.as_tensor(rows, dtype=torch.int64, device=leaf.device)], state
    )


def copy_state(state: DecoderState) -> DecoderState:
    """A state that shares no memory with the first."""
    return _map(torch.clone, state)


def concat_rows(states: Sequence[DecoderState]) -> DecoderState:
    """Batch sequences that were run apart.

    Where a tensor is as long as what a sequence has read, the shorter get zeros at the end, which
    their branch does not look at.
    """
    if len(states) == 0:
        raise ValueError("concat_rows got no states; pass at least one")
    return _map(lambda *leaves: torch.cat(_equally_long(leaves)), *states)


def _equally_long(leaves: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that differ in their batch only, the others' ends filled with zeros."""
    sizes = [max(size) for size in zip(*(leaf.shape[1:] for leaf in leaves), strict=True)]
    padded = []
    for leaf in leaves:
        missing = [want - have for want, have in zip(sizes, leaf.shape[1:], strict=True)]
        at_ends = [n for size in reversed(missing) for n in (0, size)]  # the last axis first
        padded.append(F.pad(leaf, at_ends) if any(missing) else leaf)
    return padded


def detach_state(state: DecoderState) -> DecoderState:
    """The same numbers, through which no gradient flows back to what made them."""
    return _map(torch.Tensor.detach, state)


def state_tensors(state: DecoderState) -> dict[str, Tensor]:
    """Every tensor under a name of its own, such as `layers.0.1.S` (layer, branch, field)."""
    tensors: dict[str, Tensor] = {}
    _visit(state, "", tensors)
    return tensors


def with_tensors(state: DecoderState, tensors: Mapping[str, Tensor]) -> DecoderState:
    """A state like the given one that holds the tensors of `state_tensors`.

    Raises:
        KeyError: one is missing.
    """
    names = iter(state_tensors(state))
    return _map(lambda _: tensors[next(names)], state)


def state_bytes(state: DecoderState) -> int:
    """Bytes of all tensors together."""
    total = 0

    def count(leaf: Tensor) -> Tensor:
        nonlocal total
        total += leaf.numel() * leaf.element_size()
        return leaf

    _map(count, state)
    return total


def _visit(value: Any, name: str, found: dict[str, Tensor]) -> None:
    """Note the tensors of nested tuples, in the order in which `_map` meets them."""
    if isinstance(value, Tensor):
        found[name] = value
    elif value is not None:
        keys = getattr(value, "_fields", range(len(value)))
        for key, child in zip(keys, value, strict=True):
            _visit(child, f"{name}.{key}" if name else str(key), found)


def _map(function: Callable[..., Tensor], first: Any, *rest: Any) -> Any:
    """Apply `function` to corresponding tensors of nested tuples, keeping their types."""
    if isinstance(first, Tensor):
        return function(first, *rest)
    if first is None:
        return None
    children = [_map(function, *leaves) for leaves in zip(first, *rest, strict=True)]
    return type(first)(*children) if hasattr(first, "_fields") else tuple(children)
