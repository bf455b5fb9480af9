"""The raw bytes of every token, for streaming: a token may hold a part of a character."""

import json
import re
from typing import Any

import tokenizers

from retnet.data.byte_level import byte_of_char

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

UTF8_BYTES = frozenset(
    bytes([byte]) for byte in range(256) if byte not in (0xC0, 0xC1, *range(0xF5, 0x100))
)
"""All that occur in UTF-8."""


def bytes_by_id(backend: tokenizers.Tokenizer) -> list[bytes]:
    """Return the bytes of each id; b"" for special tokens and for ids that are not used.

    Raises:
        ValueError: the tokenizer's decoder is neither byte-level nor in SentencePiece's manner, so
            that the text of a sequence is not its tokens' bytes put together; or it has no tokens
            for some bytes, so that it would lose a part of some texts.
    """
    spec: dict[str, Any] = json.loads(backend.to_str())
    decoder: dict[str, Any] = spec["decoder"] or {"type": "none"}
    steps: list[dict[str, Any]] = decoder.get("decoders", [decoder])  # of a Sequence, else the one
    kinds = {step["type"] + " by regex" * ("Regex" in step.get("pattern", ())) for step in steps}
    if kinds == {"ByteLevel"}:
        to_bytes = _ByteLevel()
    elif kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        to_bytes = _SentencePiece(steps, spec["model"])
    else:
        raise ValueError(
            f"the tokenizer's decoder ({', '.join(sorted(kinds))}) must be byte-level, or one of "
            "SentencePiece's kind, so that ids can be streamed as bytes; choose another tokenizer, "
            "or train one with kind = 'bpe'"
        )
    vocab = backend.get_vocab(with_added_tokens=True)
    special = {token["id"] for token in spec["added_tokens"] if token["special"]}
    table = [b""] * (1 + max(vocab.values()))
    for token, token_id in vocab.items():
        if token_id not in special:
            table[token_id] = to_bytes(token)
    if missing := UTF8_BYTES.difference(table):
        raise ValueError(
            f"the tokenizer's vocabulary must hold every byte, so that no text is lost, and it has "
            f"no token for {len(missing)} of {len(UTF8_BYTES)}; choose one that is byte-level or "
            "has byte fallback, or train one with kind = 'bpe'"
        )
    return table


class _ByteLevel:
    """Each character stands for a byte; an added token with other characters is itself."""

    def __init__(self) -> None:
        self.byte_of_char = byte_of_char()

    def __call__(self, token: str) -> bytes:
        try:
            return bytes(self.byte_of_char[char] for char in token)
        except KeyError:
            return token.encode()


class _SentencePiece:
    """A mark stands for the space, `<0x0A>` for a byte; the rest is itself."""

    def __init__(self, steps: list[dict[str, Any]], model: dict[str, Any]) -> None:
        falls_back = any(step["type"] == "ByteFallback" for step in steps)
        self.has_byte_tokens = falls_back and model.get("byte_fallback", False)
        self.marks = [s["pattern"]["String"] for s in steps if s["type"] == "Replace"]
        self.marks += [s["replacement"] for s in steps if s["type"] == "Metaspace"]

    def __call__(self, token: str) -> bytes:
        if self.has_byte_tokens and (byte := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        for mark in self.marks:
            token = token.replace(mark, " ")
        return token.encode()
