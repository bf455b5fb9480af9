"""What a user may say about text and tokens: the `[data]` table of a run's TOML file."""

import re
from dataclasses import dataclass, field
from typing import Literal

SMALLEST_BPE_VOCAB = 257
"""256 bytes and the document start: without them some text would have no tokens."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Where the tokens come from.

    Attributes:
        kind: `bpe` trains a byte-level BPE on the training text, `file` loads a tokenizer.json,
            `bytes` takes one token per UTF-8 byte.
        vocab_size: how many tokens `bpe` aims at; a small corpus may not fill it.
        path: the tokenizer.json, or the folder that holds it, for `file`.

    Raises:
        ValueError: vocab_size cannot hold every byte, or kind and path do not fit together.
    """

    kind: Literal["bpe", "file", "bytes"] = "bpe"
    vocab_size: int = 4096
    path: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("bpe", "file", "bytes"):
            raise ValueError(
                f"tokenizer.kind ({self.kind!r}) must be 'bpe', 'file' or 'bytes'; "
                "choose one of them in [data.tokenizer]"
            )
        if self.kind == "bpe":
            check_vocab_size(self.vocab_size)
        if (self.kind == "file") != bool(self.path):
            raise ValueError(
                f"tokenizer.path ({self.path!r}) must be given for kind 'file' and for no other, "
                f"and kind is {self.kind!r}; change one of them in [data.tokenizer]"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text to learn from, and how it becomes documents and tokens.

    Attributes:
        train: files, folders and globs. A `.jsonl` file holds one record a line, any other file is
            UTF-8 text; either may be compressed as `.gz`. A folder stands for every file below it
            that is not hidden.
        valid: the same for validation; empty means that `valid_fraction` of train is held out.
        valid_fraction: share of the text to hold out where valid is empty: whole documents, chosen
            by a hash of their text, or the tail of the longest where there are only a few.
        split_on: regular expression; a line at whose start it matches begins a new document.
            Empty: a text file, or a record of a `.jsonl` file, is one document.
        text_field: the field of a `.jsonl` record that holds the text.
        tokenizer: where the tokens come from.

    Raises:
        ValueError: train is empty, valid_fraction is not between 0 and 1, or split_on is no
            regular expression.
    """

    train: tuple[str, ...]
    valid: tuple[str, ...] = ()
    valid_fraction: float = 0.05
    split_on: str = ""
    text_field: str = "text"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError(
                "train (()) must name at least one file, folder or glob; add one in [data]"
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
