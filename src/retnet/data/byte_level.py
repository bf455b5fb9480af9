"""Our own two tokenizers, before they are wrapped: byte-level BPE, and plain bytes."""

import re
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from retnet.data.config import check_vocab_size
from retnet.data.parallel import all_cores

BOS = "<|bos|>"
"""Begins every document; our own tokenizers have no other special token."""

# GPT-2's pattern (Radford et al. 2019), with combining marks counted as letters, and each digit a
# word of its own, so that the vocabulary is not spent on numbers.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"

# A border between words wherever it occurs, since no alternative of WORDS continues from a
# non-space into a space. `[ \n]`, not `\s`: Python and the tokenizer differ on exotic spaces.
CUT = re.compile(r"\S(?=[ \n])")


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Train a byte-level BPE whose vocabulary starts with BOS (id 0) and the 256 bytes.

    Raises:
        ValueError: vocab_size is below 257.
    """
    check_vocab_size(vocab_size)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = _word_splitter()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[BOS],
        show_progress=False,
    )
    with all_cores():
        backend.train_from_iterator((piece for text in texts for piece in cut(text)), trainer)
    return finish(backend, BOS)


def plain_bytes() -> tokenizers.Tokenizer:
    """Make the tokenizer whose tokens are the 256 bytes (id = value) and BOS (id 256)."""
    backend = tokenizers.Tokenizer(models.BPE(vocab=byte_of_char(), merges=[]))
    backend.pre_tokenizer = to_bytes()
    backend.add_special_tokens([BOS])
    return finish(backend, BOS)


def may_cut(backend: tokenizers.Tokenizer) -> bool:
    """Say whether `cut` leaves the tokens as they are: so it is with our own word borders only."""
    if backend.normalizer is not None or backend.pre_tokenizer is None:
        return False
    ours = [tokenizers.Tokenizer(models.BPE()) for _ in range(2)]
    ours[0].pre_tokenizer, ours[1].pre_tokenizer = _word_splitter(), to_bytes()
    state = backend.pre_tokenizer.__getstate__()
    return state in [own.pre_tokenizer.__getstate__() for own in ours]


def cut(text: str, size: int = 1 << 12) -> Iterator[str]:
    """Cut text into pieces of about `size` characters, or more, between words.

    The tokens of the pieces, put together, are the tokens of the text, so that a book is encoded on
    all cores and in little memory. (Pieces of 4 KiB encode a third faster than of 64 KiB.)
    """
    start = 0
    while border := CUT.search(text, start + size - 1):
        yield text[start : border.end()]
        start = border.end()
    yield text[start:]


def byte_of_char() -> dict[str, int]:
    """Return GPT-2's printable stand-in for each byte, as character -> byte."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(0x100 + number): byte for number, byte in enumerate(hidden)
    }


def to_bytes() -> pre_tokenizers.ByteLevel:
    """Write each byte of a text as its printable stand-in."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _word_splitter() -> pre_tokenizers.Sequence:
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    return pre_tokenizers.Sequence([split, to_bytes()])


def finish(backend: tokenizers.Tokenizer, bos: str) -> tokenizers.Tokenizer:
    """Have a byte-level tokenizer decode, and begin documents with a token of its vocabulary."""
    backend.decoder = decoders.ByteLevel()
    # For other programs that read tokenizer.json: they see documents begin as the model did.
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A $B",
        special_tokens=[(bos, backend.token_to_id(bos))],
    )
    return backend
