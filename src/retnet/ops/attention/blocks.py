"""The work of attention in blocks: some queries, the keys near enough, and which pairs count."""

from collections.abc import Hashable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from retnet.ops.attention.reach import Reach
from retnet.ops.attention.states import documents
from retnet.ops.layout import Layout

QUERY_BLOCK = 512
"""Queries that get a mask together: memory of a mask, and future keys that are left out."""

LEAST_BLOCK = 128
"""Queries of a block under a narrow window: fewer would be more calls than work."""


class Keys(NamedTuple):
    """What is known of each key of a call: those of the state first, then the call's own.

    Attributes:
        place: counts real tokens of the row; it never goes back, so that differences are distances
            within a document. A padded token has that of the next one.
        used: False where there is no token; None when all are tokens.
        document: of the row, 0 for that of the state; None for one alone.
        sink: whether it is one of its document's first; None where these do not matter.
        num_past: how many of them are the state's.
    """

    place: Int[Tensor, "rows keys"]
    used: Bool[Tensor, "rows keys"] | None
    document: Int[Tensor, "B keys"] | None
    sink: Bool[Tensor, "rows keys"] | None
    num_past: int


class Block(NamedTuple):
    """Queries `start` to `stop` (exclusive) and the keys of some slices, in this order.

    `name` is its own among those of a call: what layers share may be kept by it.
    """

    name: Hashable
    start: int
    stop: int
    slices: tuple[slice, ...]
    mask: Bool[Tensor, "rows 1 queries keys"]
    q_place: Int[Tensor, "rows queries"]
    k_place: Int[Tensor, "rows keys"]

    def taken(self, x: Tensor, dim: int) -> Tensor:
        """The block's keys along the axis of all keys."""
        return _taken(x, self.slices, dim)


def query_blocks(layout: Layout, past: Keys, T: int, reach: Reach) -> Iterator[Block]:
    """All queries of a call in blocks, made once for all layers.

    Without padding a window bounds the keys of a block, and work and memory grow with T times the
    window. Padding may stand between neighbours, so there all earlier keys are read under the mask.

    Args:
        layout: of the call.
        past: the state's keys.
        T: tokens of the call.
        reach: how far queries look back.
    """
    size = _size(reach)
    name = ("attention block", past.num_past, reach)
    keys = layout.shared((*name, "keys"), lambda: _all_keys(layout, past, T, reach))
    for start in range(0, T, size):
        stop = min(start + size, T)
        build = partial(_block, (*name, start), layout, keys, slice(start, stop), reach)
        yield layout.shared((*name, start), build)


def num_pairs(T: int, reach: Reach) -> int:
    """Queries times keys of a text's blocks; all pairs of tokens where nothing bounds the keys."""
    if reach.window is None:
        return T * T
    size, pairs = _size(reach), 0
    for start in range(0, T, size):
        stop = min(start + size, T)
        spans = _joined(_spans(0, start, stop, reach))
        pairs += (stop - start) * sum(end - begin for begin, end in spans)
    return pairs


def _size(reach: Reach) -> int:
    """Queries of a block."""
    if reach.window is None:
        return QUERY_BLOCK
    return min(QUERY_BLOCK, max(LEAST_BLOCK, reach.window))


def _all_keys(layout: Layout, past: Keys, T: int, reach: Reach) -> Keys:
    own = _places(layout, T)
    rows = max(len(past.place), len(own))

    def joined(a: Tensor, b: Tensor) -> Tensor:
        both = max(rows, len(a), len(b)) if len(a) and len(b) else 0  # a batch may have no rows
        return torch.cat([a.expand(both, -1), b.expand(both, -1)], 1)

    used = document = sink = None
    if past.used is not None or layout.valid is not None:
        of_past = torch.ones_like(past.place, dtype=torch.bool) if past.used is None else past.used
        own_valid = layout.valid
        if own_valid is None:
            own_valid = torch.ones(1, T, dtype=torch.bool, device=own.device)
        used = joined(of_past, own_valid)
    of = documents(layout)
    if of is not None:
        document = joined(torch.zeros_like(past.place), of)
    if reach.sinks:
        first = layout.positions < reach.sinks
        sink = joined(past.place < reach.sinks, first)
    return Keys(joined(past.place, own), used, document, sink, past.num_past)


def _places(layout: Layout, T: int) -> Tensor:
    if layout.starts is None:
        return layout.positions
    if layout.valid is None:
        return layout.positions[:, :1] + torch.arange(T, device=layout.positions.device)
    real = layout.valid.long()
    return layout.positions[:, :1] + real.cumsum(1) - real


def _slices(layout: Layout, keys: Keys, start: int, stop: int, reach: Reach) -> tuple[slice, ...]:
    """Keys that queries start to stop may see, and few others."""
    scattered = reach.sinks and layout.starts is not None  # every document has sinks of its own
    if reach.window is None or layout.valid is not None or scattered:
        return (slice(0, keys.num_past + stop),)  # later ones are in the future
    return tuple(slice(*span) for span in _joined(_spans(keys.num_past, start, stop, reach)))


def _spans(num_past: int, start: int, stop: int, reach: Reach) -> list[tuple[int, int]]:
    """First and last key (exclusive) of what queries see where neighbours lie side by side."""
    assert reach.window is not None
    last = num_past + stop
    return [
        (max(num_past + start - reach.window + 1, 0), last),
        # the state's sinks come first in it, those of a text's beginning first in the call
        (0, min(reach.sinks, num_past)),
        (num_past, min(num_past + reach.sinks, last)),
    ]


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same keys in order, each in one span."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(span for span in spans if span[0] < span[1]):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


def _block(name: Hashable, layout: Layout, keys: Keys, queries: slice, reach: Reach) -> Block:
    start, stop = queries.start, queries.stop
    own = slice(keys.num_past + start, keys.num_past + stop)
    slices = _slices(layout, keys, start, stop, reach)
    mask = _seen(keys, slices, own, reach)[:, None]
    q_place, k_place = keys.place[:, own], _taken(keys.place, slices, 1)
    return Block(name, start, stop, slices, mask, q_place, k_place)


def _seen(keys: Keys, slices: tuple[slice, ...], own: slice, reach: Reach) -> Tensor:
    """Whether each query, one of the keys `own`, sees each key, (rows, queries, keys)."""
    index = torch.arange(keys.place.shape[1], device=keys.place.device)
    key, query = _taken(index, slices, 0), index[own, None]
    seen = (key <= query).expand(len(keys.place), -1, -1)
    if reach.window is not None:
        near = _taken(keys.place, slices, 1)[:, None] > keys.place[:, own, None] - reach.window
        seen = seen & (near if keys.sink is None else near | _taken(keys.sink, slices, 1)[:, None])
    if keys.document is not None:
        of = _taken(keys.document, slices, 1)[:, None]
        seen = seen & (of == keys.document[:, own, None])
    if keys.used is not None:
        # a padded query sees itself, so that no softmax is over nothing
        seen = seen & _taken(keys.used, slices, 1)[:, None] | (key == query)
    return seen


def _taken(x: Tensor, slices: tuple[slice, ...], dim: int) -> Tensor:
    parts = [x.narrow(dim, s.start, s.stop - s.start) for s in slices]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
