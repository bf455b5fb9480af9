"""One long row of tokens on disk or in memory, with the places where documents start."""

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
        starts, chunks, num_tokens, num_bytes = array("q"), [], 0, 0
        for ids, text_bytes in _encode(texts, tokenizer):
            starts.append(num_tokens)
            chunks.append(ids.astype(_token_dtype(tokenizer)))
            num_tokens += len(ids)
            num_bytes += text_bytes
        if not chunks:
            raise ValueError("texts must hold at least one character; give some text")
        return cls(np.concatenate(chunks), np.array(starts), num_bytes, tokenizer.bos_id)

    @classmethod
    def open(cls, folder: Path) -> "TokenStream":
        """Open a stream that `write_stream` has written.

        Raises:
            ValueError: the files do not fit together.
        """
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        tokens = _map(folder / TOKENS, index["dtype"], index["num_tokens"])
        starts = _map(folder / DOCUMENTS, "<i8", index["num_documents"])
        return cls(tokens, starts, index["num_bytes"], index["bos_id"])


def write_stream(folder: Path, texts: Iterable[str], tokenizer: Tokenizer) -> None:
    """Tokenise documents into a new folder: tokens.bin, documents.bin and index.json.

    Not atomic: `prepare` writes to a temporary folder and renames it.

    Args:
        folder: must not exist.
        texts: documents; empty ones are left out, and there must be one that is not.
        tokenizer: its ids decide between 16 and 32 bits a token.
    """
    folder.mkdir()
    dtype = _token_dtype(tokenizer)
    starts, num_tokens, num_bytes = array("q"), 0, 0
    with (folder / TOKENS).open("wb") as file:
        for ids, text_bytes in _encode(texts, tokenizer):
            starts.append(num_tokens)
            file.write(ids.astype(dtype).tobytes())
            num_tokens += len(ids)
            num_bytes += text_bytes
        _flush(file)
    assert starts, "whoever calls has measured the texts"
    with (folder / DOCUMENTS).open("wb") as file:
        file.write(np.array(starts, dtype="<i8").tobytes())
        _flush(file)
    index = {
        "dtype": dtype,
        "num_tokens": num_tokens,
        "num_documents": len(starts),
        "num_bytes": num_bytes,
        "bos_id": tokenizer.bos_id,
        "tokenizer": tokenizer.fingerprint,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _encode(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, int]]:
    """Yield each document's ids, BOS first, and its length in bytes."""
    lengths: list[int] = []

    def measured() -> Iterator[str]:
        for text in texts:
            if text:
                lengths.append(len(text.encode()))
                yield text

    # The tokenizer reads ahead by a batch; lengths wait in order.
    for number, ids in enumerate(tokenizer.encode_documents(measured())):
        yield ids, lengths[number]


def _token_dtype(tokenizer: Tokenizer) -> str:
    return "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())  # a rename may reach the disk before the data does


def _map(path: Path, dtype: str, length: int) -> np.ndarray:
    expected = length * np.dtype(dtype).itemsize
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise ValueError(
            f"{path} must have {expected} bytes and has {found}, so it was damaged after it was "
            f"written; delete {path.parent.parent} and run again"
        )
    return np.memmap(path, dtype=dtype, mode="r", shape=(length,))
