"""One long row of tokens on disk or in memory, with the places where documents start."""

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from retnet.data.tokenizer import Tokenizer

TOKENS, DOCUMENTS, INDEX = "tokens.bin", "documents.bin", "index.json"


@dataclass(frozen=True, eq=False)
class TokenStream:
    """Documents one after the other, each with BOS before it.

    Attributes:
        tokens: (num_tokens,) uint16 or uint32, memory-mapped if the stream is on disk.
        document_starts: (num_documents,) int64, the place of each document's BOS; begins with 0.
        num_bytes: UTF-8 bytes of the documents' text, for bits per byte.
        bos_id: the token that begins a document, and occurs nowhere else.
    """

    tokens: np.ndarray
    document_starts: np.ndarray
    num_bytes: int
    bos_id: int

    @property
    def num_tokens(self) -> int:
        """Tokens, BOS included."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Documents."""
        return len(self.document_starts)

    @classmethod
    def from_texts(cls, texts: Iterable[str], tokenizer: Tokenizer) -> "TokenStream":
        """Tokenise documents in memory; for text that is used once.

        Raises:
            ValueError: there is no text.
        """
        counts = _Counts()
        chunks = list(_encode(texts, tokenizer, counts))
        if not chunks:
            raise ValueError("texts must hold at least one character; give some text")
        return cls(
            np.concatenate(chunks), np.array(counts.starts), counts.num_bytes, tokenizer.bos_id
        )

    @classmethod
    def open(cls, folder: Path) -> "TokenStream":
        """Open a stream that `write_stream` has written.

        Raises:
            ValueError: a file is missing, cut short, or does not fit the others.
        """
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            tokens = _map(folder / TOKENS, index["dtype"], index["num_tokens"])
            starts = _map(folder / DOCUMENTS, "<i8", index["num_documents"])
            stream = cls(tokens, starts, index["num_bytes"], index["bos_id"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(folder.parent, error) from error
        stream._check_starts(folder)
        return stream

    def _check_starts(self, folder: Path) -> None:
        """Look at a few places; to read a long stream whole would take minutes."""
        starts = self.document_starts
        some = starts[np.linspace(0, len(starts) - 1, min(len(starts), 1024), dtype=np.int64)]
        if (
            some[0] != 0
            or some[-1] >= self.num_tokens
            or (np.diff(some) <= 0).any()
            or (self.tokens[some] != self.bos_id).any()
        ):
            problem = f"{folder / DOCUMENTS} and {folder / TOKENS} do not fit together"
            raise damaged(folder.parent, problem)


def damaged(corpus: Path, problem: object) -> ValueError:
    """Make the error of a prepared corpus that is not as it was written."""
    return ValueError(
        f"the tokens in {corpus} were damaged after they were written ({problem}); delete {corpus} "
        "and run the same command again, which makes them anew"
    )


def write_stream(folder: Path, texts: Iterable[str], tokenizer: Tokenizer) -> None:
    """Tokenise documents into a new folder: tokens.bin, documents.bin and index.json.

    Not atomic: `prepare` writes to a temporary folder and renames it.

    Args:
        folder: must not exist.
        texts: documents; empty ones are left out.
        tokenizer: its ids decide between 16 and 32 bits a token.
    """
    folder.mkdir()
    dtype = _token_dtype(tokenizer)
    counts = _Counts()
    with (folder / TOKENS).open("wb") as file:
        for tokens in _encode(texts, tokenizer, counts):
            file.write(tokens.tobytes())
        _flush(file)
    with (folder / DOCUMENTS).open("wb") as file:
        file.write(np.array(counts.starts, dtype="<i8").tobytes())
        _flush(file)
    index = {
        "dtype": dtype,
        "num_tokens": counts.num_tokens,
        "num_documents": len(counts.starts),
        "num_bytes": counts.num_bytes,
        "bos_id": tokenizer.bos_id,
        "tokenizer": tokenizer.fingerprint,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@dataclass(kw_only=True)
class _Counts:
    """What has been encoded so far."""

    starts: array = field(default_factory=lambda: array("q"))
    num_tokens: int = 0
    num_bytes: int = 0


def _encode(texts: Iterable[str], tokenizer: Tokenizer, counts: _Counts) -> Iterator[np.ndarray]:
    """Yield the tokens of all documents, in pieces smaller than a long document."""

    def measured() -> Iterator[str]:
        for text in filter(None, texts):
            counts.num_bytes += len(text.encode())
            yield text

    dtype = _token_dtype(tokenizer)
    for ids, begins in tokenizer.encode_pieces(measured()):
        if begins:
            counts.starts.append(counts.num_tokens)
        counts.num_tokens += len(ids)
        yield ids.astype(dtype)


def _token_dtype(tokenizer: Tokenizer) -> str:
    return "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())  # a rename may reach the disk before the data does


def _map(path: Path, dtype: str, length: int) -> np.ndarray:
    expected = length * np.dtype(dtype).itemsize
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise ValueError(f"{path} must have {expected} bytes and has {found}")
    return np.memmap(path, dtype=dtype, mode="r", shape=(length,))
