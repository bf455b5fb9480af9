"""Tokenise a corpus once, into a folder that appears whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from retnet.data.config import DataConfig
from retnet.data.corpus import Documents, find_files
from retnet.data.progress import Progress, reported
from retnet.data.split import Selection, select_all, split_documents
from retnet.data.stream import TokenStream, write_stream
from retnet.data.tokenizer import Tokenizer

try:
    import fcntl
except ImportError:  # Windows: two runs that start at once both do the work; one result stays
    fcntl = None

FORMAT = 1
"""Part of every key: raise it when the same source would give other files."""


class Sources(NamedTuple):
    """The files that the configuration names; no valid ones where a part of train is held out."""

    train: tuple[Path, ...]
    valid: tuple[Path, ...]


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenizer, and the text to train on and to validate with as its tokens.

    Attributes:
        train: the training stream.
        valid: the validation stream; no document of it is in train.
        tokenizer: what made the tokens.
        folder: where they lie.
    """

    train: TokenStream
    valid: TokenStream
    tokenizer: Tokenizer
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "Corpus":
        """Open what `prepare` has made.

        Raises:
            ValueError: a file was damaged since.
        """
        return cls(
            train=TokenStream.open(folder / "train"),
            valid=TokenStream.open(folder / "valid"),
            tokenizer=Tokenizer.load(folder),
            folder=folder,
        )


def prepare(
    config: DataConfig,
    cache_dir: Path,
    *,
    base: Path | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Read, split and tokenise a corpus, or open the result of having done so before.

    The result lies in a folder of cache_dir named after what it depends on: the configuration, and
    each source's path, size and time of change. It is written elsewhere and renamed when complete.
    Processes that call this at once do the work once.

    Args:
        config: what to read.
        cache_dir: is made if it does not exist.
        base: where relative paths start, such as the folder of the configuration file; None is the
            current folder.
        progress: is called about once a megabyte.

    Raises:
        ValueError: a path matches nothing, a file is not text, there is no text, training and
            validation share a file, or the tokenizer cannot be loaded.
    """
    base = Path.cwd() if base is None else base
    sources = Sources(
        find_files(config.train, base, option="train"),
        find_files(config.valid, base, option="valid"),
    )
    if shared := sorted(set(sources.train) & set(sources.valid)):
        raise ValueError(
            f"valid must share no file with train, and both name {shared[0]}; take it out of one "
            "of them in [data]"
        )
    origin = _origin(config, sources, base)
    key = hashlib.sha256(origin.encode()).hexdigest()[:16]
    folder = cache_dir / key
    if not folder.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f".{key}.lock"):
            if not folder.exists():
                with _appears_whole(folder) as work:
                    (work / "origin.json").write_text(origin, encoding="utf-8")
                    _fill(work, config, sources, base, progress)
    return Corpus.open(folder)


def _origin(config: DataConfig, sources: Sources, base: Path) -> str:
    """Write down all that the result depends on."""

    def stamp(path: Path) -> tuple[str, int, int]:
        stat = path.stat()
        return str(path), stat.st_size, stat.st_mtime_ns

    options = asdict(config)
    del options["train"], options["valid"]  # the files that they name say more
    if config.tokenizer.kind == "file":
        options["tokenizer"] = _given_tokenizer(config, base).fingerprint
    stamps = {name: [stamp(path) for path in paths] for name, paths in sources._asdict().items()}
    content = {"format": FORMAT, "options": options, "sources": stamps}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _given_tokenizer(config: DataConfig, base: Path) -> Tokenizer:
    return Tokenizer.load(base / os.path.expanduser(config.tokenizer.path))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, even by a crash
        yield


@contextmanager
def _appears_whole(folder: Path) -> Iterator[Path]:
    """Give a folder to write to; it becomes `folder` if the block ends well, else it vanishes."""
    prefix = f".{folder.name}-"
    if fcntl is not None:  # then the lock is ours, so these belong to runs that were killed
        for leftover in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    work = temporary / folder.name  # mkdtemp's own folder would stay closed to other users
    work.mkdir()
    try:
        yield work
        try:
            work.rename(folder)
        except OSError:
            if not folder.exists():  # else a run without the lock was faster: the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(
    folder: Path, config: DataConfig, sources: Sources, base: Path, progress: Progress | None
) -> None:
    """Write the tokenizer and both streams."""
    train, valid = _select(config, sources, progress)
    if config.tokenizer.kind == "bpe":
        texts = reported(train, "training the tokenizer", train.num_bytes, progress)
        tokenizer = Tokenizer.train_bpe(texts, config.tokenizer.vocab_size)
    elif config.tokenizer.kind == "file":
        tokenizer = _given_tokenizer(config, base)
    else:
        tokenizer = Tokenizer.bytes()
    tokenizer.save(folder)
    for name, selection in (("train", train), ("valid", valid)):
        texts = reported(selection, f"tokenising {name}", selection.num_bytes, progress)
        write_stream(folder / name, texts, tokenizer)


def _select(
    config: DataConfig, sources: Sources, progress: Progress | None
) -> tuple[Selection, Selection]:
    """Read everything once, so that bad files are named before any long work starts."""
    train, valid = (Documents(paths, config.split_on, config.text_field) for paths in sources)
    if sources.valid:
        return (
            select_all(train, option="train", progress=progress),
            select_all(valid, option="valid", progress=progress),
        )
    return split_documents(train, config.valid_fraction, progress)
