"""The embedded corpus: Python source that lies on every machine that can run this."""

import hashlib
import inspect
import json
import platform
import sys
import sysconfig
import tokenize
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from retnet.hub import write_atomic

SKIPPED = frozenset(
    (
        *("test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data"),
        *("site-packages", "dist-packages", "__pycache__"),
    )
)
"""Tests and tables teach little, and installed packages differ from machine to machine."""

HELD_OUT = 0.04
"""Share of the files, chosen by a hash of their names: about 300 kB."""

SMALLEST_BYTES = 1_000_000
"""With less source than this, the library is taken to be absent."""


ABOUT = "about.json"


@dataclass(frozen=True, kw_only=True)
class PythonCorpus:
    """A folder with two files of one JSON record for each document, `{"name", "text"}`.

    Attributes:
        folder: where the files are.
        description: what the text is, with Python's version.
        num_documents: of both files together.
        train_bytes: UTF-8 bytes of text to learn from.
        valid_bytes: of text held out, whole documents.
    """

    folder: Path
    description: str
    num_documents: int
    train_bytes: int
    valid_bytes: int

    @property
    def train(self) -> Path:
        """The file to learn from."""
        return self.folder / "train.jsonl"

    @property
    def valid(self) -> Path:
        """The file held out."""
        return self.folder / "valid.jsonl"

    def text(self, file: Path) -> bytes:
        """All text of `train` or `valid`, for models that know no documents."""
        with file.open(encoding="utf-8") as lines:
            return b"".join(json.loads(line)["text"].encode() for line in lines)

    @classmethod
    def open(cls, folder: Path) -> "PythonCorpus | None":
        """The corpus that `write_corpus` put there; None if it did not, or not to the end."""
        about = folder / ABOUT
        if not about.exists():
            return None
        return cls(folder=folder, **json.loads(about.read_text(encoding="utf-8")))


def write_corpus(folder: Path, library: Path | None = None) -> PythonCorpus:
    """Gather the corpus into `folder`; the same Python gives the same two files.

    Args:
        folder: made if it does not exist.
        library: a folder of Python files to take in place of the standard library, as it is.

    Raises:
        ValueError: there is neither source nor documentation to learn from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description, documents = _source(library)
    parts: dict[str, list[str]] = {"train": [], "valid": []}
    sizes = dict.fromkeys(parts, 0)
    for name, text in documents:
        part = "valid" if is_held_out(name) else "train"
        parts[part].append(json.dumps({"name": name, "text": text}) + "\n")
        sizes[part] += len(text.encode())
    if not all(sizes.values()):
        raise ValueError(
            f"{description} gave {sizes['train']} bytes to learn from and {sizes['valid']} to hold "
            "out, and both must be more than 0; install Python with its source, or train on text "
            "of your own with `retnet train`"
        )
    about = {
        "description": description,
        "num_documents": sum(map(len, parts.values())),
        "train_bytes": sizes["train"],
        "valid_bytes": sizes["valid"],
    }
    corpus = PythonCorpus(folder=folder, **about)
    for path, text in (
        (corpus.train, "".join(parts["train"])),
        (corpus.valid, "".join(parts["valid"])),
        (folder / ABOUT, json.dumps(about, indent=2) + "\n"),  # last: it says that all is there
    ):
        write_atomic(path, partial(_write, text))
    return corpus


def is_held_out(name: str) -> bool:
    """Decide by the name alone, so that a file keeps its side from one Python to the next."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < HELD_OUT * 2**64


def _source(library: Path | None) -> tuple[str, list[tuple[str, str]]]:
    """What to learn from, in words, and its documents."""
    if library is not None:
        return f"the Python files of {library}", list(python_files(library))
    python = f"Python {platform.python_version()}"
    documents = list(python_files(Path(sysconfig.get_paths()["stdlib"])))
    if sum(len(text) for _, text in documents) >= SMALLEST_BYTES:
        return f"the standard library of {python}, its source", documents
    return (
        f"the documentation in {python} (its library has no source files here)",
        list(documentation()),
    )


def python_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of the Python files below a folder, in the order of their names."""
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        # _sysconfigdata_* lists the paths of the machine that Python was built on
        if SKIPPED.isdisjoint(name.parts) and not name.name.startswith("_sysconfigdata"):
            text = _python_text(path)
            if text.strip():
                yield name.as_posix(), text


def documentation() -> Iterator[tuple[str, str]]:
    """Yield the texts of `help()` that need no source: its topics, and what modules say they do.

    Only modules that are imported already speak: importing all would run code, some of it odd.
    """
    yield from help_topics()
    # a copy of both: looking at a module may import another
    for name, module in sorted(sys.modules.items()):
        ours = name.partition(".")[0] in sys.stdlib_module_names
        # what stands there need not be a module: None forbids one, `typing.io` imitates one
        if ours and isinstance(module, types.ModuleType) and (texts := _docstrings(module)):
            yield name, "\n\n\n".join(texts) + "\n"


def help_topics() -> list[tuple[str, str]]:
    """Name and text of the topics of `help()`: half a megabyte of prose."""
    try:
        topics = import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions leave it out
        topics = {}
    return sorted(topics.items())


def _docstrings(module: types.ModuleType) -> list[str]:
    """What a module says of itself, and of what is defined in it, each once."""
    texts: dict[str, None] = {}
    with warnings.catch_warnings(action="ignore"):  # some names are deprecated, and say so
        for thing in (module, *vars(module).copy().values()):
            if thing is not module and getattr(thing, "__module__", None) != module.__name__:
                continue  # it speaks where it is defined
            members = vars(thing).copy().values() if inspect.isclass(thing) else ()
            for documented in (thing, *members):
                text = getattr(documented, "__doc__", None)
                if isinstance(text, str) and text.strip():
                    name = getattr(documented, "__name__", "")
                    texts[f"{name}\n\n{inspect.cleandoc(text)}"] = None
    return list(texts)


def _python_text(path: Path) -> str:
    """The text as its coding line says; nothing where it is not what it says."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError, OSError):  # a wrong coding line, text or permission
        return ""


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
