"""Tokenizers that take the longest known piece each time, as RWKV's "World" tokenizer does.

The `tokenizers` library can do that, so such a tokenizer is a tokenizer.json like any other: a
WordPiece model without prefixes takes the longest piece first, from the start of a word on. It
tries ever shorter pieces, which is slow for long words, so a regular expression, the trie of all
pieces that are text, cuts the text before; its matches are the longest pieces already. What is left
to the model is a character without a piece of its own: its bytes are matched.
"""

import ast
from collections.abc import Collection, Mapping
from pathlib import Path

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from retnet.data.byte_level import byte_of_char, finish, to_bytes

END = "<|endoftext|>"
"""Id 0 of RWKV's tokenizers: between documents, and no text."""

MAX_BRANCHES = 6
"""Alternatives of the expression that are tried one after the other."""


def read_rwkv_vocabulary(file: Path) -> dict[bytes, int]:
    """Read the text file of a World tokenizer: lines of an id, a literal of Python, and its bytes.

    Returns:
        The id of each piece.

    Raises:
        ValueError: a line is none such, or an id or a piece comes twice.
    """
    pieces: dict[bytes, int] = {}
    lines = file.read_text(encoding="utf-8").split("\n")  # other line ends occur in literals
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            id_text, _, rest = line.partition(" ")
            literal, _, num_bytes = rest.rstrip().rpartition(" ")
            value = ast.literal_eval(literal)
            piece = value.encode() if isinstance(value, str) else bytes(value)
            token_id, good = int(id_text), len(piece) == int(num_bytes) > 0
        except (ValueError, SyntaxError, TypeError):
            piece, token_id, good = b"", 0, False
        if not good or token_id < 1 or piece in pieces:
            raise ValueError(
                f"{file}, line {number} ({line!r:.60}) must be an id above 0, a Python literal "
                "that is new, and its length in bytes; give the vocabulary of RWKV's World "
                "models, or a tokenizer.json"
            )
        pieces[piece] = token_id
    if len(set(pieces.values())) < len(pieces):
        raise ValueError(f"{file} gives one id to several pieces; give a vocabulary that does not")
    return pieces


def longest_match(pieces: Mapping[bytes, int]) -> tokenizers.Tokenizer:
    """Make the tokenizer of some pieces; id 0 is `END`, which no text contains.

    Raises:
        ValueError: a piece is no text and holds more than a part of one character.
    """
    texts: list[str] = []
    for piece in pieces:
        try:
            texts.append(piece.decode())
        except UnicodeDecodeError:
            if not all(0x80 <= byte < 0xC0 for byte in piece[1:]):
                raise ValueError(
                    f"piece {piece!r} must be whole characters, or a part of one; longest matches "
                    "of other pieces are not implemented"
                ) from None
    char_of_byte = {byte: char for char, byte in byte_of_char().items()}
    vocab = {"".join(char_of_byte[byte] for byte in piece): pieces[piece] for piece in pieces}
    model = models.WordPiece(
        vocab | {END: 0},
        unk_token=END,  # never needed: every byte is a piece
        continuing_subword_prefix="",
        max_input_chars_per_word=max(4, *map(len, pieces)),
    )
    backend = tokenizers.Tokenizer(model)
    pattern = Regex(_longest_of(texts) + r"|[\s\S]")
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes()])
    backend.add_special_tokens([END])
    return finish(backend, END)


def _longest_of(texts: Collection[str]) -> str:
    """Write an expression that matches the longest of some texts that stands at a place."""
    texts = set(texts)
    chars: dict[str, set[str]] = {}  # that may follow the beginning of a text
    for text in texts:
        for end in range(len(text)):
            chars.setdefault(text[:end], set()).add(text[end])
    alternatives = ""
    rest: dict[str, str] = {}  # what follows a beginning, as an expression
    for start in sorted(chars, key=len, reverse=True):
        after = {char: rest.get(start + char, "") for char in sorted(chars[start])}
        last = "".join(_char(char) for char in after if not after[char])
        more = [(char, tail) for char, tail in after.items() if tail]
        alternatives = "|".join(_by_halves(more) + ([f"[{last}]"] if last else []))
        # where a text ends, longer if it can be, and else not
        rest[start] = f"(?:{alternatives})" + "?" * (start in texts)
    return alternatives  # after "", which came last


def _by_halves(after: list[tuple[str, str]]) -> list[str]:
    # The engine tries alternatives in order: many are put into a tree that it looks into first.
    if len(after) <= MAX_BRANCHES:
        return [_char(char) + tail for char, tail in after]
    half = len(after) // 2
    ahead = f"(?=[{_char(after[0][0])}-{_char(after[half - 1][0])}])"
    return [f"{ahead}(?:{'|'.join(_by_halves(after[:half]))})", *_by_halves(after[half:])]


def _char(char: str) -> str:
    return char if char.isalnum() or not char.isascii() else rf"\x{{{ord(char):x}}}"
