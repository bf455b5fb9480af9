"""Which tokens a step sees: pure functions of (seed, step), and passes in order to evaluate."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from retnet.data.order import epoch_phase, permute
from retnet.data.stream import TokenStream

IGNORED = -100
"""The target of a place that does not count, as in torch.nn.functional.cross_entropy."""


class Batch(NamedTuple):
    """Tokens to read, tokens to predict, and where documents start.

    Attributes:
        inputs: the tokens.
        targets: the token after each input; -100 where there is none to predict.
        starts: True where the input is the BOS of a document.
    """

    inputs: Int64[Tensor, "B T"]
    targets: Int64[Tensor, "B T"]
    starts: Bool[Tensor, "B T"]


def windows_per_epoch(stream: TokenStream, seq_len: int) -> int:
    """Return the number of training windows in one pass over the stream.

    Raises:
        ValueError: seq_len is not positive, or the stream is too short for one window.
    """
    _check_positive("seq_len", seq_len)
    if stream.num_tokens < seq_len + 1:
        raise ValueError(
            f"seq_len ({seq_len}) must be below the number of tokens, and there are "
            f"{stream.num_tokens}; use a shorter seq_len or more text"
        )
    return (stream.num_tokens - 1) // seq_len


def window_starts(
    samples: np.ndarray, stream: TokenStream, *, seq_len: int, seed: int
) -> np.ndarray:
    """Return the place in the stream where each sample's window begins.

    Samples are numbered through all epochs without end. The windows of an epoch do not overlap;
    they begin at a phase that changes from epoch to epoch, so that their borders do, and the
    stream is read as a ring: a window may run over its end into its first document.

    Args:
        samples: int64 sample numbers, any shape.
        stream: the training tokens.
        seq_len: tokens from one window to the next.
        seed: of the order.

    Returns:
        int64 of the same shape, in [0, num_tokens).
    """
    per_epoch = windows_per_epoch(stream, seq_len)
    epochs, places = np.divmod(samples, per_epoch)
    starts = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        windows = permute(places[here], per_epoch, seed=seed, epoch=epoch)
        phase = epoch_phase(stream.num_tokens, seed=seed, epoch=epoch)
        starts[here] = (phase + windows * seq_len) % stream.num_tokens
    return starts


def training_batch(  # noqa: PLR0913 - a place in the run has five coordinates
    stream: TokenStream,
    *,
    seq_len: int,
    batch_size: int,
    seed: int,
    step: int,
    rank: int = 0,
    world_size: int = 1,
    micro_step: int = 0,
    micro_steps: int = 1,
) -> Batch:
    """Return what one process reads in one micro-step; nothing but the arguments decides it.

    Step s takes samples [s * batch_size, (s + 1) * batch_size) of all epochs one after the other.
    Together, the ranks and micro-steps of a step read exactly these, whatever their number.

    Args:
        stream: the training tokens.
        seq_len: T.
        batch_size: windows of a whole step, over all ranks and micro-steps.
        seed: of the order.
        step: from 0.
        rank: this process, of `world_size`.
        world_size: processes that share the step.
        micro_step: this part of the step, of `micro_steps`.
        micro_steps: parts whose gradients are accumulated.

    Returns:
        B = batch_size / (world_size * micro_steps) rows.

    Raises:
        ValueError: the stream is too short, or batch_size does not divide evenly.
    """
    assert step >= 0
    assert 0 <= rank < world_size
    assert 0 <= micro_step < micro_steps
    rows = _share(batch_size, world_size, micro_steps)
    first = step * batch_size + (micro_step * world_size + rank) * rows
    samples = np.arange(first, first + rows, dtype=np.int64)
    starts = window_starts(samples, stream, seq_len=seq_len, seed=seed)
    return _windows(stream, starts, seq_len)


def carried_batch(  # noqa: PLR0913 - a place in the run has five coordinates
    stream: TokenStream,
    *,
    seq_len: int,
    batch_size: int,
    seed: int,
    step: int,
    rank: int = 0,
    world_size: int = 1,
    micro_step: int = 0,
    micro_steps: int = 1,
) -> Batch:
    """Return what one process reads in one micro-step where each row goes on from the step before.

    Row b of a step's batch_size rows reads the stream, as a ring, from b / batch_size of the way
    through it, seq_len tokens a step: what `training_batch` is to models that start anew at each
    window, this is to models whose state is carried along. The rows of a process follow each other,
    whatever its number of micro-steps.

    Args and raises: as `training_batch`; the seed moves the places where the rows begin.
    """
    rows = _share(batch_size, world_size, micro_steps)
    windows_per_epoch(stream, seq_len)  # checks the length
    first = (rank * micro_steps + micro_step) * rows
    lanes = np.arange(first, first + rows, dtype=np.int64)
    phase = epoch_phase(stream.num_tokens, seed=seed, epoch=0)
    begins = phase + lanes * stream.num_tokens // batch_size + step * seq_len
    return _windows(stream, begins, seq_len)


def stream_segments(stream: TokenStream, *, seq_len: int, batch_size: int = 1) -> Iterator[Batch]:
    """Yield the whole stream in order, for a model that carries its state from batch to batch.

    Every token but the first is a target exactly once. With more rows than one, the stream is cut
    into that many runs of whole documents (fewer if there are not enough), one a row; since a state
    starts anew at each document, that changes no prediction.

    Args:
        stream: what to evaluate.
        seq_len: T, of all batches but the last, which is as short as the longest run needs.
        batch_size: most rows.

    Yields:
        Batches of the same number of rows; runs that have ended are padded with BOS, target -100.

    Raises:
        ValueError: seq_len or batch_size is not positive.
    """
    _check_positive("seq_len", seq_len)
    _check_positive("batch_size", batch_size)
    ideal = np.arange(1, batch_size) * (stream.num_tokens / batch_size)
    following = np.searchsorted(stream.document_starts, ideal)
    around = np.clip([following - 1, following], 0, stream.num_documents - 1)
    before, after = stream.document_starts[around]
    nearest = np.where(ideal - before < after - ideal, before, after)
    cuts = np.unique(np.concatenate([[0], nearest, [stream.num_tokens - 1]]))
    return _segments(stream, cuts[:-1], cuts[1:], seq_len)


def _segments(
    stream: TokenStream, begins: np.ndarray, ends: np.ndarray, seq_len: int
) -> Iterator[Batch]:
    """Yield batches whose row b goes over the inputs begins[b] ... ends[b] - 1."""
    longest = int((ends - begins).max())
    for offset in range(0, longest, seq_len):
        length = min(seq_len, longest - offset)
        counts = np.clip(ends - begins - offset, 0, length)
        places = begins[:, None] + offset + np.arange(length + 1)
        tokens = stream.tokens[np.minimum(places, stream.num_tokens - 1)].astype(np.int64)
        yield _batch(stream, tokens, counts)


def eval_windows(stream: TokenStream, *, seq_len: int, batch_size: int) -> Iterator[Batch]:
    """Yield disjoint windows that cover the stream, for a model that starts anew at each.

    Every token but the first is a target exactly once.

    Args:
        stream: what to evaluate.
        seq_len: T.
        batch_size: B of all batches but the last.

    Yields:
        Batches; the last window is padded with BOS, target -100.

    Raises:
        ValueError: seq_len or batch_size is not positive.
    """
    _check_positive("seq_len", seq_len)
    _check_positive("batch_size", batch_size)
    num_targets = stream.num_tokens - 1
    begins = np.arange(0, num_targets, seq_len)
    for first in range(0, len(begins), batch_size):
        rows = begins[first : first + batch_size]
        places = rows[:, None] + np.arange(seq_len + 1)
        tokens = stream.tokens[np.minimum(places, num_targets)].astype(np.int64)
        yield _batch(stream, tokens, np.minimum(num_targets - rows, seq_len))


def _windows(stream: TokenStream, begins: np.ndarray, seq_len: int) -> Batch:
    """Make a batch of full rows, row b from begins[b] of the stream as a ring."""
    places = (begins[:, None] + np.arange(seq_len + 1)) % stream.num_tokens  # B T+1
    counts = np.full(len(begins), seq_len)
    return _batch(stream, stream.tokens[places].astype(np.int64), counts)


def _batch(stream: TokenStream, tokens: np.ndarray, counts: np.ndarray) -> Batch:
    """Make a batch of tokens (B, T + 1), of which row b has counts[b] inputs, then padding."""
    inputs, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
    padding = np.arange(inputs.shape[1]) >= counts[:, None]
    inputs[padding] = stream.bos_id
    targets[padding] = IGNORED
    starts = inputs == stream.bos_id
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(starts))


def share_rows(batch: Batch, rank: int, world_size: int) -> Batch:
    """Return the rows of a batch that one process reads, of several that share it.

    There is at least one: a process without a share reads a row that does not count, because all
    must run the model equally often.
    """
    rows = -(-len(batch.inputs) // world_size)
    mine = Batch(*(tensor[rank * rows : (rank + 1) * rows] for tensor in batch))
    if len(mine.inputs):
        return mine
    return Batch(batch.inputs[:1], torch.full_like(batch.targets[:1], IGNORED), batch.starts[:1])


def _share(batch_size: int, world_size: int, micro_steps: int) -> int:
    """Rows of one process in one micro-step."""
    parts = world_size * micro_steps
    if batch_size < 1 or batch_size % parts:
        raise ValueError(
            f"batch_size ({batch_size}) must be a positive multiple of world_size * micro_steps "
            f"({world_size} * {micro_steps}); change one of them"
        )
    return batch_size // parts


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} ({value}) must be at least 1; raise it")
