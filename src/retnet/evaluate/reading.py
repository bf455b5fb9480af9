"""Reading a stream of documents in large batches, each token after all or some of its document.

With the state carried, documents are spread over lanes, a row of the batch each, so that all lanes
are about equally long; a lane that has ended leaves the batch. What a token is predicted from is
the same in any number of lanes.
"""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from retnet.data import TokenStream
from retnet.ops.cross_entropy import IGNORED

CALL_TOKENS = 2048
"""Tokens of a batch, all rows together: more are no faster on a CPU, and need more memory."""


class Segment(NamedTuple):
    """A batch, and how it follows the one before.

    Attributes:
        inputs: tokens to read.
        targets: the token after each input; -100 where none counts.
        starts: True where a document begins; None where none does.
        read: tokens of its document, as far as it was read, that stand before each input.
        rows: which rows of the batch before go on here, as rows of this one; None: none does.
    """

    inputs: Int64[Tensor, "B T"]
    targets: Int64[Tensor, "B T"]
    starts: Bool[Tensor, "B T"] | None
    read: Int64[Tensor, "B T"]
    rows: list[int] | None


def read_carried(stream: TokenStream, *, batch_size: int) -> Iterator[Segment]:
    """Yield the whole stream, for a model that carries its state from segment to segment.

    Every token but the first is a target exactly once.

    Args:
        stream: documents.
        batch_size: most lanes; there are fewer where the longest document would be alone for long.
    """
    ends = np.append(stream.document_starts[1:], stream.num_tokens - 1)
    lanes = _lanes(np.asarray(stream.document_starts), ends, batch_size)
    seq_len = CALL_TOKENS // len(lanes)
    alive = list(range(len(lanes)))
    for offset in range(0, lanes[0].length, seq_len):
        going = [lane for lane in alive if lanes[lane].length > offset]
        rows = [alive.index(lane) for lane in going] if offset else None
        alive = going
        length = min(seq_len, lanes[0].length - offset)
        found = [lanes[lane].places(offset, length) for lane in alive]
        places, read, real = (np.stack(parts) for parts in zip(*found, strict=True))
        yield _segment(stream, places, read, real, rows)


def read_windows(
    stream: TokenStream, *, seq_len: int, stride: int, batch_size: int
) -> Iterator[Segment]:
    """Yield windows, for a model that starts anew at each.

    Windows begin every `stride` tokens; each scores its last `stride` places, the first all. So
    every token but the first is a target exactly once, and is predicted from the last
    `seq_len - stride` tokens of its document at least, if there are so many.

    Args:
        stream: documents; inside a window, too, each begins anew.
        seq_len: tokens of a window.
        stride: tokens from one window to the next; `seq_len` gives disjoint windows.
        batch_size: windows at a time.
    """
    num_targets = stream.num_tokens - 1
    last = max(num_targets - (seq_len - stride), 1)  # a window from here on would score nothing
    begins = np.arange(0, last, stride)
    for first in range(0, len(begins), batch_size):
        rows = begins[first : first + batch_size, None]
        places = rows + np.arange(seq_len)
        real = places < num_targets
        fresh = (rows == 0) | (np.arange(seq_len) >= seq_len - stride)
        starts = np.asarray(stream.tokens[np.minimum(places, num_targets)]) == stream.bos_id
        index = np.broadcast_to(np.arange(seq_len), places.shape)
        begun = np.maximum.accumulate(np.where(starts, index, 0), axis=1)
        yield _segment(stream, places, index - begun, real, None, counts=fresh)


class _Lane(NamedTuple):
    """Documents one after the other, each from begins to ends - 1 of the stream's inputs."""

    begins: np.ndarray
    offsets: np.ndarray
    length: int

    def places(self, offset: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places in the stream of a part of the lane, tokens of the document before, if real."""
        at = np.arange(offset, offset + length)
        real = at < self.length
        at = np.minimum(at, self.length - 1)
        document = np.searchsorted(self.offsets, at, side="right") - 1
        read = at - self.offsets[document]
        return self.begins[document] + read, read, real


def _lanes(begins: np.ndarray, ends: np.ndarray, most: int) -> list[_Lane]:
    """Spread documents over lanes, the longest first, each to the shortest lane so far."""
    lengths = ends - begins
    begins, lengths = begins[lengths > 0], lengths[lengths > 0]
    count = max(1, min(most, int(lengths.sum() // max(int(lengths.max(initial=1)), 1))))
    heap = [(0, lane) for lane in range(count)]
    members: list[list[int]] = [[] for _ in range(count)]
    for document in np.argsort(-lengths, kind="stable").tolist():
        total, lane = heapq.heappop(heap)
        members[lane].append(document)
        heapq.heappush(heap, (total + int(lengths[document]), lane))
    lanes = []
    for own in filter(None, members):
        documents = np.sort(own)
        ends_in_lane = np.cumsum(lengths[documents])
        offsets = ends_in_lane - lengths[documents]
        lanes.append(_Lane(begins[documents], offsets, int(ends_in_lane[-1])))
    return sorted(lanes, key=lambda lane: -lane.length)


def _segment(
    stream: TokenStream,
    places: np.ndarray,
    read: np.ndarray,
    real: np.ndarray,
    rows: list[int] | None,
    *,
    counts: np.ndarray | None = None,
) -> Segment:
    """Look up tokens (B, T); what is not real is padded with BOS, and asks nothing."""
    last = stream.num_tokens - 1
    inputs = stream.tokens[np.minimum(places, last)].astype(np.int64)
    targets = stream.tokens[np.minimum(places + 1, last)].astype(np.int64)
    inputs[~real] = stream.bos_id
    targets[~(real if counts is None else real & counts)] = IGNORED
    starts = torch.from_numpy(inputs == stream.bos_id)
    return Segment(
        torch.from_numpy(inputs),
        torch.from_numpy(targets),
        starts if starts.any() else None,
        torch.from_numpy(np.ascontiguousarray(read)),
        rows,
    )
