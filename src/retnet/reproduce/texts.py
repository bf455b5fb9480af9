"""The texts of an experiment: what models learn from, and what they are tested on."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retnet.data import (
    DataConfig,
    Documents,
    Progress,
    Tokenizer,
    TokenizerConfig,
    TokenStream,
    find_files,
    prepare,
)
from retnet.evaluate import count_words
from retnet.hub import from_dict, load_toml, write_atomic
from retnet.reproduce.cell import MODELS, Place
from retnet.reproduce.corpus import PythonCorpus, help_topics, write_corpus
from retnet.train.resume import corpus_fingerprint

CHARS_PER_TOKEN = 12
"""More than any text has, so that no more is read of a long document than is needed."""


@dataclass(frozen=True, kw_only=True)
class OtherText:
    """Long documents of another domain.

    Attributes:
        name: heads its column.
        files: as `train` of the `[data]` of a run.
        text_field: of their records.
    """

    name: str
    files: tuple[str, ...]
    text_field: str = "text"


@dataclass(frozen=True, kw_only=True)
class TextsConfig:
    """The user's texts: a TOML file for `--data`. Files are named as in the `[data]` of a run.

    Attributes:
        name: of the domain that is learned.
        train: to learn from.
        valid: for learning rates to be chosen by.
        test: of the same domain, for the tables.
        split_on: as in `[data]`, of these three.
        text_field: likewise.
        other: of other domains, for the tables.
    """

    name: str
    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    split_on: str = ""
    text_field: str = "text"
    other: tuple[OtherText, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class StoredText:
    """A test text, tokenised once, in a file that every cell reads.

    Attributes:
        name: of its domain.
        fingerprint: of its tokens.
        num_tokens: documents' first tokens included.
        num_documents: their number.
        num_bytes: of the text.
        longest: tokens of the second longest document: so much can be read of at least two.
        num_words: as WikiText counts them (see `retnet.evaluate.count_words`); 0 if only the
            beginnings of documents are kept.
    """

    name: str
    fingerprint: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    longest: int
    num_words: int = 0

    def open(self, place: Place) -> TokenStream:
        """The tokens."""
        with np.load(_stored(place, self.fingerprint)) as arrays:
            return TokenStream(
                tokens=arrays["tokens"],
                document_starts=arrays["document_starts"],
                num_bytes=self.num_bytes,
                bos_id=int(arrays["bos_id"]),
            )

    def settings(self) -> dict[str, Any]:
        """What the text is, as JSON."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "tokens": self.num_tokens,
            "documents": self.num_documents,
            "bytes": self.num_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class Texts:
    """All texts of an experiment, ready.

    Attributes:
        name: of the domain that is learned.
        data: what the train room is given.
        fingerprint: of the tokens to learn from and to validate with.
        num_tokens: to learn from.
        vocab_size: of the tokenizer.
        tests: in domain first.
    """

    name: str
    data: DataConfig
    fingerprint: str
    num_tokens: int
    vocab_size: int
    tests: tuple[StoredText, ...]


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much of the texts a scale reads.

    Attributes:
        train_bytes: of text to learn from, at most; 0 is all.
        test_tokens: of each test text, at most.
        document_tokens: from the beginning of each of its documents, at most.
        tokenizer: how text becomes tokens.
        held_out: test on whole documents of the test and of the validation text, until there are
            `test_tokens` of each, and on no other domain.
    """

    train_bytes: int = 0
    test_tokens: int
    document_tokens: int
    tokenizer: TokenizerConfig
    held_out: bool = False


def load_texts(file: Path) -> TextsConfig:
    """Read the TOML file that names a user's texts.

    Raises:
        ValueError: it is missing or no TOML, or a key is unknown, missing or of the wrong type.
    """
    return from_dict(TextsConfig, load_toml(file))


def prepare_texts(
    config: TextsConfig | None,
    amounts: Amounts,
    place: Place,
    progress: Progress | None = None,
) -> Texts:
    """Tokenise everything once, or find that it was done before.

    Args:
        config: the user's; None takes Python's own library, which lies on every machine.
        amounts: how much.
        place: where to keep tokens.
        progress: as for `retnet.data.prepare`.

    Raises:
        ValueError: a file is missing or no text.
    """
    if config is None:
        config = python_texts(place.work / "python")
    data = DataConfig(
        train=config.train,
        valid=config.valid,
        split_on=config.split_on,
        text_field=config.text_field,
        max_bytes=amounts.train_bytes,
        tokenizer=amounts.tokenizer,
    )
    corpus = prepare(data, place.work / MODELS / ".tokens", base=place.root, progress=progress)
    parts = {config.name: config.test}
    if amounts.held_out:
        parts = {"test": config.test, "validation": config.valid}
    asked = [
        (OtherText(name=name, files=files, text_field=config.text_field), config.split_on)
        for name, files in parts.items()
    ]
    if not amounts.held_out:
        asked += [(other, "") for other in config.other]
    tests = [_store(text, split_on, amounts, corpus.tokenizer, place) for text, split_on in asked]
    return Texts(
        name=config.name,
        data=data,
        fingerprint=corpus_fingerprint(corpus),
        num_tokens=corpus.train.num_tokens,
        vocab_size=corpus.tokenizer.vocab_size,
        tests=tuple(tests),
    )


def python_texts(folder: Path, library: Path | None = None) -> TextsConfig:
    """Text that every machine has: Python's source to learn, its help topics as another domain.

    Of the files held out, every second one is for the tests.

    Args:
        folder: to write to.
        library: Python files in place of the standard library.
    """
    corpus = PythonCorpus.open(folder) or write_corpus(folder, library)
    halves = [folder / name for name in ("tuning.jsonl", "test.jsonl")]
    lines = _lines(corpus.valid)
    for number, half in enumerate(halves):
        # a library of one held-out file has it in both
        _write(half, "".join(lines[number::2] or lines))
    learned = {
        json.loads(line)["name"] for file in (corpus.train, corpus.valid) for line in _lines(file)
    }
    topics = [text for name, text in help_topics() if name not in learned]
    help_file = folder / "help.txt"
    _write(help_file, "\n\n\n".join(topics))
    other = OtherText(name="Python help", files=(str(help_file),))
    return TextsConfig(
        name="Python source",
        train=(str(corpus.train),),
        valid=(str(halves[0]),),
        test=(str(halves[1]),),
        other=(other,) if topics else (),
    )


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines(keepends=True)


def _write(path: Path, text: str) -> None:
    """Leave a file alone that is right: its time of change is part of what names the tokens."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _store(
    text: OtherText, split_on: str, amounts: Amounts, tokenizer: Tokenizer, place: Place
) -> StoredText:
    files = find_files(list(text.files), place.root, option=f"files of {text.name}")
    documents = Documents(files, split_on=split_on, text_field=text.text_field)
    if amounts.held_out:
        whole = list(_first(documents, amounts.test_tokens, tokenizer))
        stream = TokenStream.from_texts(whole, tokenizer)
        num_words = count_words(whole)
    else:
        stream, num_words = beginnings(documents, amounts, tokenizer), 0
    digest = hashlib.blake2b(tokenizer.fingerprint.encode(), digest_size=8)
    digest.update(stream.tokens.astype("<u4").tobytes())
    stored = StoredText(
        name=text.name,
        fingerprint=digest.hexdigest(),
        num_tokens=stream.num_tokens,
        num_documents=stream.num_documents,
        num_bytes=stream.num_bytes,
        longest=_second_longest(stream),
        num_words=num_words,
    )
    path = _stored(place, stored.fingerprint)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, partial(_save, stream))
    return stored


def _second_longest(stream: TokenStream) -> int:
    lengths = np.diff(np.append(stream.document_starts, stream.num_tokens))
    return int(np.sort(lengths)[-2]) if len(lengths) > 1 else 0


def _first(texts: Iterable[str], tokens: int, tokenizer: Tokenizer) -> Iterator[str]:
    """Texts, until they have so many tokens."""
    read = 0
    for text in texts:
        yield text
        [document] = tokenizer.encode_documents([text])
        read += len(document)
        if read >= tokens:
            return


def beginnings(texts: Iterable[str], amounts: Amounts, tokenizer: Tokenizer) -> TokenStream:
    """The first tokens of each document, until there are enough.

    Raises:
        ValueError: there is no text.
    """
    tokens: list[np.ndarray] = []
    starts, total, num_bytes = [], 0, 0
    chars = CHARS_PER_TOKEN * amounts.document_tokens
    for document in tokenizer.encode_documents(text[:chars] for text in texts):
        kept = document[: min(amounts.document_tokens, amounts.test_tokens - total)]
        starts.append(total)
        tokens.append(kept.astype(np.uint32))
        total += len(kept)
        num_bytes += sum(len(tokenizer.id_bytes(i)) for i in kept.tolist())
        if total >= amounts.test_tokens:
            break
    if total < 2:
        raise ValueError("a test text must hold at least 2 tokens; name files with more text")
    return TokenStream(
        np.concatenate(tokens), np.array(starts, dtype=np.int64), num_bytes, tokenizer.bos_id
    )


def _save(stream: TokenStream, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(
            file,
            tokens=stream.tokens,
            document_starts=stream.document_starts,
            bos_id=np.int64(stream.bos_id),
        )


def _stored(place: Place, fingerprint: str) -> Path:
    return place.work / "texts" / f"{fingerprint}.npz"
