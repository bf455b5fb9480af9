"""Perplexity per token and bits per byte of a model on text."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from retnet.data import (
    Batch,
    Documents,
    Tokenizer,
    TokenStream,
    eval_windows,
    find_files,
    stream_segments,
)
from retnet.model import Decoder
from retnet.model.scoring import total_nats

SEGMENT_TOKENS = 512
"""Tokens of a row that the model reads at a time with its state carried; no score depends on it."""

Progress = Callable[[int, int], None]
"""Called with the tokens scored so far and in all."""


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """How well a model predicted a text.

    Attributes:
        nats: negative log-likelihood of all tokens, the ends of documents included.
        num_tokens: tokens predicted.
        num_bytes: UTF-8 bytes of the text.
    """

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def perplexity(self) -> float:
        """Per token: comparable only between models of one tokenizer."""
        return math.exp(min(self.nats / self.num_tokens, 700))

    @property
    def bits_per_byte(self) -> float:
        """Comparable between all models, whatever their tokens, and with compressors."""
        return self.nats / math.log(2) / self.num_bytes


def score_stream(
    model: Decoder,
    stream: TokenStream,
    *,
    seq_len: int | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> TextScore:
    """Score every token of a stream but the first.

    Args:
        model: on any device, in any mode.
        stream: documents; the model forgets what came before each.
        seq_len: None predicts each token from all of its document before it, with the state
            carried along; a number starts afresh every so many tokens, as a window does. A model
            that reads no documents of any length does so at the longest that it can read.
        batch_size: rows at a time; it changes no score.
        progress: see `Progress`.

    Raises:
        ValueError: seq_len or batch_size is not positive.
    """
    for name, value in (("seq_len", seq_len), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1; raise it")
    seq_len = seq_len or model.max_tokens
    if seq_len is None:
        batches = stream_segments(stream, seq_len=SEGMENT_TOKENS, batch_size=batch_size)
    else:
        batches = eval_windows(stream, seq_len=seq_len, batch_size=batch_size)
    nats, num_tokens = total_nats(
        model,
        _on_device(_reported(batches, stream.num_tokens - 1, progress), _device(model)),
        carry_state=seq_len is None,
    )
    return TextScore(nats=nats, num_tokens=num_tokens, num_bytes=stream.num_bytes)


def score_files(
    model: Decoder,
    tokenizer: Tokenizer,
    files: Iterable[str | Path],
    *,
    seq_len: int | None = None,
    progress: Progress | None = None,
) -> TextScore:
    """Score text files; each is one document (of a `.jsonl` file: the field `text` of each line).

    Args:
        model: see `score_stream`.
        tokenizer: the model's.
        files: files, and folders for all files below them.
        seq_len: see `score_stream`.
        progress: see `Progress`.

    Raises:
        ValueError: a path does not exist, a file is not text, or all are empty.
    """
    stream = read_files(tokenizer, files)
    return score_stream(model, stream, seq_len=seq_len, progress=progress)


def read_files(tokenizer: Tokenizer, files: Iterable[str | Path]) -> TokenStream:
    """Tokenise text files in memory; see `score_files`."""
    files = [str(path) for path in files]
    if not files:
        raise ValueError("there is no file to read; name text files, or folders of them")
    for path in files:
        if not Path(path).exists():
            raise ValueError(f"{path} does not exist; give text files, or folders of them")
    paths = find_files(files, Path.cwd(), option="files")
    return TokenStream.from_texts(Documents(paths), tokenizer)


def _reported(batches: Iterable[Batch], total: int, progress: Progress | None) -> Iterator[Batch]:
    """Yield the batches; report each when the next is asked for, hence when it is done."""
    done = 0
    for batch in batches:
        if progress is not None:
            progress(done, total)
        yield batch
        done += int((batch.targets != -100).sum())
    if progress is not None:
        progress(done, total)


def _on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    for batch in batches:
        yield Batch(*(tensor.to(device) for tensor in batch))


def _device(model: Decoder) -> torch.device:
    return next(model.parameters()).device
