"""What a user may say about text and tokens: the `[data]` table of a run's TOML file."""

import re
from dataclasses import dataclass, field
from typing import Literal

from retnet.data.data_set import PREFIX, parse_entry

SMALLEST_BPE_VOCAB = 257
"""256 bytes and the document start: without them some text would have no tokens."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Where the tokens come from.

    Attributes:
        kind: `bpe` trains a byte-level BPE on the training text, `file` loads a tokenizer.json,
            `pretrained` that of a model on the Hugging Face hub, `bytes` takes one token per UTF-8
            byte.
        vocab_size: how many tokens `bpe` aims at; a small corpus may not fill it.
        path: for `file` the tokenizer.json, or the folder that holds it; for `pretrained` the
            model's `owner/name`, with `@REVISION` after it if wanted, or a folder.

    Raises:
        ValueError: vocab_size cannot hold every byte, or kind and path do not fit together.
    """

    kind: Literal["bpe", "file", "pretrained", "bytes"] = "bpe"
    vocab_size: int = 4096
    path: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("bpe", "file", "pretrained", "bytes"):
            raise ValueError(
                f"tokenizer.kind ({self.kind!r}) must be 'bpe', 'file', 'pretrained' or 'bytes'; "
                "choose one of them in [data.tokenizer]"
            )
        if self.kind == "bpe":
            check_vocab_size(self.vocab_size)
        if (self.kind in ("file", "pretrained")) != bool(self.path):
            raise ValueError(
                f"tokenizer.path ({self.path!r}) must be given for kind 'file' or 'pretrained' and "
                f"for no other, and kind is {self.kind!r}; change one of them in [data.tokenizer]"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text to learn from, and how it becomes documents and tokens.

    Attributes:
        train: files, folders and globs. A `.jsonl` file holds one record a line, a `.parquet` file
            one a row, any other file is UTF-8 text; text and `.jsonl` may be compressed as `.gz`. A
            folder stands for every file below it that is not hidden. An entry
            `hf:NAME[@REVISION][[:CONFIG]:SPLIT]` is a data set of the Hugging Face `datasets`
            library, on the hub or in a folder; without SPLIT, its `train`.
        valid: the same for validation; empty means that `valid_fraction` of train is held out.
        valid_fraction: share of the text to hold out where valid is empty: whole documents, chosen
            by a hash of their text, or the tail of the longest where there are only a few.
        split_on: regular expression; a line at whose start it matches begins a new document.
            Empty: a text file, or a record of any other source, is one document.
        text_field: the field of a `.jsonl` record, or the column of a Parquet file or data set,
            that holds the text.
        max_bytes: read train, and valid likewise, only up to the document that reaches so many
            UTF-8 bytes; 0 reads everything.
        streaming: read data sets over the network once, as far as they are needed, rather than
            download them first.
        tokenizer: where the tokens come from.

    Raises:
        ValueError: train is empty, an `hf:` entry is malformed, valid_fraction is not between 0 and
            1, split_on is no regular expression, max_bytes is negative, or there is no data set to
            stream.
    """

    train: tuple[str, ...]
    valid: tuple[str, ...] = ()
    valid_fraction: float = 0.05
    split_on: str = ""
    text_field: str = "text"
    max_bytes: int = 0
    streaming: bool = False
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError(
                "train (()) must name at least one file, folder or glob; add one in [data]"
            )
        data_sets = [e for e in (*self.train, *self.valid) if e.startswith(PREFIX)]
        for entry in data_sets:
            parse_entry(entry)
        if self.streaming and not data_sets:
            raise ValueError(
                "streaming (True) must go with a data set, an entry 'hf:...' of train or valid, "
                "and there is none; leave it out of [data]"
            )
        if self.max_bytes < 0:
            raise ValueError(
                f"max_bytes ({self.max_bytes}) must not be negative, and 0 reads everything; "
                "change it in [data]"
            )
        if not 0 < self.valid_fraction < 1:
            raise ValueError(
                f"valid_fraction ({self.valid_fraction}) must lie between 0 and 1, both excluded; "
                "change it in [data], or name validation files in valid"
            )
        try:
            re.compile(self.split_on)
        except re.error as error:
            raise ValueError(
                f"split_on ({self.split_on!r}) must be a regular expression ({error}); "
                "correct it in [data]"
            ) from error


def check_vocab_size(vocab_size: int) -> None:
    """Raise ValueError unless a byte-level vocabulary of this size can hold every byte and BOS."""
    if vocab_size < SMALLEST_BPE_VOCAB:
        raise ValueError(
            f"vocab_size ({vocab_size}) must be at least {SMALLEST_BPE_VOCAB}, the 256 bytes and "
            "the document start; raise it in [data.tokenizer], or choose kind = 'bytes'"
        )
