"""Tokenise a corpus once, into a folder that appears whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from retnet.data.config import DataConfig
from retnet.data.corpus import Documents, Source
from retnet.data.pretrained import load_pretrained
from retnet.data.progress import Progress, reported
from retnet.data.sources import Sources, Stamps, find_sources
from retnet.data.split import Selection, evenly, select_all, split_documents
from retnet.data.spool import Spool
from retnet.data.stream import TokenStream, damaged, write_stream
from retnet.data.tokenizer import Tokenizer

try:
    import fcntl
except ImportError:  # Windows: two runs that start at once both do the work; one result stays
    fcntl = None

FORMAT = 1
"""Part of every key: raise it when the same source would give other files."""

BPE_BYTES = 1 << 30
"""Of text are enough to train a tokenizer on; more would take hours, and much memory."""


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
            ValueError: a file was damaged or deleted since.
        """
        train, valid = (TokenStream.open(folder / name) for name in ("train", "valid"))
        try:
            tokenizer = Tokenizer.load(folder)
        except ValueError as error:
            raise damaged(folder, error) from error
        return cls(train=train, valid=valid, tokenizer=tokenizer, folder=folder)


def prepare(
    config: DataConfig,
    cache_dir: Path,
    *,
    base: Path | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Read, split and tokenise a corpus, or open the result of having done so before.

    The result lies in a folder of cache_dir named after what it depends on: the configuration, and
    each file's path, size and time of change, or each data set's commit. It is written elsewhere
    and renamed when complete. Processes that call this at once do the work once.

    Args:
        config: what to read.
        cache_dir: is made if it does not exist.
        base: where relative paths start, such as the folder of the configuration file; None is the
            current folder.
        progress: is called about once a megabyte.

    Raises:
        ValueError: a path matches nothing, a file is not text, vanishes or changes meanwhile, there
            is no text, training and validation share a file, the tokenizer cannot be loaded, or the
            disk is full.
    """
    base = Path.cwd() if base is None else base
    sources = find_sources(config, base)
    stamps, tokenizer = sources.stamps(), _given_tokenizer(config, base)
    origin = _origin(config, stamps, tokenizer)
    key = hashlib.sha256(origin.encode()).hexdigest()[:16]
    folder = cache_dir / key
    if not folder.exists():
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            with _locked(cache_dir / f".{key}.lock"):
                if not folder.exists():
                    with _appears_whole(folder) as work:
                        (work / "origin.json").write_text(origin, encoding="utf-8")
                        _fill(work, config, sources, tokenizer, progress)
                        if sources.stamps() != stamps:
                            raise ValueError(
                                "the files of train and valid must stay as they are while they "
                                "are read, and one has changed; run the same command again"
                            )
        except OSError as error:  # readers have said what failed in reading
            raise ValueError(
                f"{cache_dir} cannot take the tokens ({error}), and nothing half-made is left in "
                "it; make room, or let run.dir lie on another disk, and run the same command again"
            ) from error
    return Corpus.open(folder)


def _origin(config: DataConfig, stamps: Stamps, tokenizer: Tokenizer | None) -> str:
    """Write down all that the result depends on."""
    options = asdict(config)
    del options["train"], options["valid"]  # the files that they name say more
    if tokenizer is not None:
        options["tokenizer"] = tokenizer.fingerprint
    content = {"format": FORMAT, "options": options, "sources": stamps}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _given_tokenizer(config: DataConfig, base: Path) -> Tokenizer | None:
    """Load the tokenizer that the configuration names; None if it names none."""
    if config.tokenizer.kind == "file":
        return Tokenizer.load(base / os.path.expanduser(config.tokenizer.path))
    if config.tokenizer.kind == "pretrained":
        return load_pretrained(config.tokenizer.path, base)
    return None


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
    folder: Path,
    config: DataConfig,
    sources: Sources,
    tokenizer: Tokenizer | None,
    progress: Progress | None,
) -> None:
    """Write the tokenizer, which is made here unless it is given, and both streams."""
    train, valid = _select(config, sources, folder.parent, progress)
    if tokenizer is None and config.tokenizer.kind == "bpe":
        texts = evenly(train, train.num_bytes, BPE_BYTES)
        total = min(train.num_bytes, BPE_BYTES)
        texts = reported(texts, "training the tokenizer", total, progress)
        tokenizer = Tokenizer.train_bpe(texts, config.tokenizer.vocab_size)
    tokenizer = tokenizer or Tokenizer.bytes()
    tokenizer.save(folder)
    for name, selection in (("train", train), ("valid", valid)):
        texts = reported(selection, f"tokenising {name}", selection.num_bytes, progress)
        write_stream(folder / name, texts, tokenizer)


def _select(
    config: DataConfig, sources: Sources, scratch: Path, progress: Progress | None
) -> tuple[Selection, Selection]:
    """Read everything once, so that bad files are named before any long work starts."""

    def documents(option: str, some: tuple[Source, ...]) -> Iterable[str]:
        read = Documents(some, config.split_on, config.text_field, config.max_bytes)
        return Spool(read, scratch / f"{option}.spool") if config.streaming else read

    train, valid = (documents(*item) for item in sources._asdict().items())
    if sources.valid:
        return (
            select_all(train, option="train", progress=progress),
            select_all(valid, option="valid", progress=progress),
        )
    return split_documents(train, config.valid_fraction, progress)
