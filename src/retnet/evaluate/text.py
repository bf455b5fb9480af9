"""Perplexity per token and per word, and bits per byte, of a model on text."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from retnet.data import DataConfig, Documents, Tokenizer, TokenStream
from retnet.data.data_set import PREFIX
from retnet.data.sources import find_sources
from retnet.evaluate.losses import PositionLoss, Tally, token_nats
from retnet.evaluate.memory import state_grows
from retnet.evaluate.reading import CALL_TOKENS, read_carried, read_windows
from retnet.model import Decoder, DecoderState, select_rows
from retnet.ops.cross_entropy import IGNORED

Progress = Callable[[int, int], None]
"""Called with the tokens scored so far and in all."""


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """How well a model predicted a text.

    Attributes:
        nats: negative log-likelihood of all tokens, the ends of documents included.
        num_tokens: tokens predicted.
        num_bytes: UTF-8 bytes of the text.
        by_position: mean losses by how many tokens of the document, or window, came before.
    """

    nats: float
    num_tokens: int
    num_bytes: int
    by_position: tuple[PositionLoss, ...] = ()

    @property
    def perplexity(self) -> float:
        """Per token: comparable only between models of one tokenizer."""
        return self.perplexity_per(self.num_tokens)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between all models, whatever their tokens, and with compressors."""
        return self.nats / math.log(2) / self.num_bytes

    def perplexity_per(self, units: int) -> float:
        """Perplexity if the text is taken to have so many units, such as `count_words` returns."""
        return math.exp(min(self.nats / units, 700))


def score_stream(
    model: Decoder,
    stream: TokenStream,
    *,
    seq_len: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> TextScore:
    """Score every token of a stream but the first.

    Args:
        model: on any device, in any mode.
        stream: documents; the model forgets what came before each.
        seq_len: None predicts each token from all of its document before it, with the state
            carried along, so that memory does not grow with the text unless the state does; a
            number starts afresh in windows of so many tokens. A model that reads no documents of
            any length does so at the longest that it can read.
        stride: tokens from one window to the next, each predicted from `seq_len - stride` tokens
            before it at least; None is seq_len: windows that do not overlap.
        batch_size: most rows at a time; it changes no score. A state that grows is carried in one
            row: beside a longer row it would be padded to that one's length.
        progress: see `Progress`.

    Raises:
        ValueError: seq_len, stride or batch_size is outside its range.
    """
    for name, value in (("seq_len", seq_len), ("stride", stride), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1; raise it")
    seq_len = seq_len or model.max_tokens
    stride = stride or seq_len
    if stride is not None and (seq_len is None or stride > seq_len):
        raise ValueError(
            f"stride ({stride}) must be at most seq_len ({seq_len}), or tokens between windows "
            "would not be scored; lower it, or give both"
        )
    if seq_len is None or stride is None:
        segments = read_carried(stream, batch_size=1 if state_grows(model) else batch_size)
    else:
        together = min(batch_size, max(CALL_TOKENS // seq_len, 1))
        segments = read_windows(stream, seq_len=seq_len, stride=stride, batch_size=together)
    device = next(model.parameters()).device
    tally, total = Tally(), stream.num_tokens - 1
    training = model.training
    model.eval()
    state: DecoderState | None = None
    try:
        with torch.inference_mode():
            for inputs, targets, starts, read, rows in segments:
                if progress is not None:
                    progress(tally.num_tokens, total)
                if rows is None or state is None:
                    state = None
                elif len(rows) < len(state.position):
                    state = select_rows(state, rows)
                starts = starts if starts is None else starts.to(device)
                hidden, state = model.hidden(inputs.to(device), state, starts=starts)
                nats = token_nats(model, hidden.flatten(0, 1), targets.flatten().to(device))
                tally.add(nats.view(inputs.shape), read, targets != IGNORED)
    finally:
        model.train(training)
    if progress is not None:
        progress(tally.num_tokens, total)
    return TextScore(
        nats=tally.nats,
        num_tokens=tally.num_tokens,
        num_bytes=stream.num_bytes,
        by_position=tally.by_position(),
    )


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
        files: see `find_texts`.
        seq_len: see `score_stream`.
        progress: see `Progress`.

    Raises:
        ValueError: a path does not exist, a file is not text, or all are empty.
    """
    stream = read_files(tokenizer, files)
    return score_stream(model, stream, seq_len=seq_len, progress=progress)


def read_files(tokenizer: Tokenizer, files: Iterable[str | Path]) -> TokenStream:
    """Tokenise text files in memory; see `score_files`."""
    return TokenStream.from_texts(find_texts(files), tokenizer)


def find_texts(
    files: Iterable[str | Path], *, text_field: str = "text", split_on: str = ""
) -> Documents:
    """The documents of files, of all files below folders, and of data sets (`hf:NAME`).

    Args:
        files: paths, globs, and data sets as training takes them.
        text_field: the field of a record that holds its text.
        split_on: a regular expression; a line that begins with it begins a document.

    Raises:
        ValueError: there is nothing by a name, or there are no names.
    """
    names = [str(path) for path in files]
    if not names:
        raise ValueError("there is no file to read; name text files, or folders of them")
    for name in names:
        plain = not name.startswith(PREFIX) and not set(name) & set("*?[")
        if plain and not Path(name).exists():
            raise ValueError(f"{name} does not exist; give text files, or folders of them")
    sources = find_sources(DataConfig(train=tuple(names)), Path.cwd()).train
    return Documents(sources, split_on=split_on, text_field=text_field)


def count_words(texts: Iterable[str]) -> int:
    """Words as WikiText counts them: what blanks separate, and one more for the end of each line.

    Raises:
        ValueError: there is none.

    Example:
        >>> count_words(["the cat sat .\\n", "on the mat .\\n"])
        10
    """
    words = sum(len(text.split()) + text.count("\n") for text in texts)
    if words == 0:
        raise ValueError("the texts have no words, so there is no perplexity per word")
    return words
