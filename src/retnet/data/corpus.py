"""From file names to documents: find the files, read them, cut them."""

import codecs
import glob
import gzip
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from retnet.data.data_set import DataSet
from retnet.data.parquet import read_parquet

SUPPORTED = "UTF-8 text and .jsonl, either of them as .gz, and .parquet"

Source = Path | DataSet
"""What documents are read from."""


def find_files(entries: Iterable[str], base: Path, *, option: str) -> tuple[Path, ...]:
    """Resolve files, folders and globs to absolute file paths, each once, in a fixed order.

    Args:
        entries: paths as the user wrote them; relative ones start at `base`.
        base: an absolute or relative folder.
        option: the name of the option that holds the entries, for messages.

    Raises:
        ValueError: an entry matches no file.
    """
    found: dict[Path, None] = {}
    for entry in entries:
        # A literal path wins over a pattern: names such as "notes[1].txt" are common.
        path = base / os.path.expanduser(entry)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = [p for p in path.rglob("*") if not _is_hidden(p.relative_to(path))]
        else:
            pattern = os.path.expanduser(entry)
            matches = [base / name for name in glob.glob(pattern, root_dir=base, recursive=True)]
        files = sorted(Path(os.path.abspath(p)) for p in matches if p.is_file())
        if not files:
            raise ValueError(
                f"{option} entry {entry!r} must match at least one file, and there is none "
                f"(relative names start at {os.path.abspath(base)}); correct the name"
            )
        found.update(dict.fromkeys(files))
    return tuple(found)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


@dataclass(frozen=True)
class Documents:
    """The documents of some files and data sets; each iteration reads them anew, in order.

    Empty documents are left out. Nothing else is changed: the documents of a text file, put
    together, are the file (less a byte order mark).

    Attributes:
        sources: what to read.
        split_on: see `cut_documents`.
        text_field: the field of a record, or the column, that holds the text.
        max_bytes: end after the document that reaches so many UTF-8 bytes; 0 reads everything.

    Raises:
        ValueError: while iterating, at the first file or record that is not text.
    """

    sources: tuple[Source, ...]
    split_on: str = ""
    text_field: str = "text"
    max_bytes: int = 0

    def __iter__(self) -> Iterator[str]:
        num_bytes = 0
        for source in self.sources:
            for text in _read(source, self.text_field):
                for document in filter(None, cut_documents(text, self.split_on)):
                    yield document
                    if self.max_bytes:
                        num_bytes += len(document.encode())
                        if num_bytes >= self.max_bytes:
                            return


def cut_documents(text: str, split_on: str) -> Iterator[str]:
    """Cut text before every line at whose start the regular expression `split_on` matches.

    Blank space before the first such line belongs to the first document. The pieces, put together,
    are the text. An empty expression cuts nothing.
    """
    if not split_on:
        yield text
        return
    pattern = re.compile(split_on, re.MULTILINE)
    line_starts = itertools.chain([0], (match.end() for match in re.finditer("\n", text)))
    begin, found = 0, False
    for start in line_starts:
        if start < len(text) and pattern.match(text, start):
            if found or text[:start].strip():
                yield text[begin:start]
                begin = start
            found = True
    yield text[begin:]


def unreadable(path: Path, error: OSError) -> ValueError:
    """Make the error of a file that was found, and now cannot be read."""
    return ValueError(
        f"{path} cannot be read ({error.strerror or error}); bring it back and leave it in place, "
        "or see to its permissions or its disk, and run the same command again"
    )


def _read(source: Source, text_field: str) -> Iterator[str]:
    """Yield the texts of a source: of a text file one, else those of its records."""
    if isinstance(source, DataSet):
        return source.texts(text_field)
    name = source.name.lower()
    if name.endswith(".parquet"):
        return read_parquet(source, text_field)
    if name.removesuffix(".gz").endswith(".jsonl"):
        return _read_records(source, text_field)
    return iter([_read_text(source)])


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, decompressed if its name ends in .gz; explain what fails while it is read."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} must be a whole gzip file because its name ends in .gz ({error}); "
            "compress it again, or leave it out"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _not_text(path: Path, offset: int, found: str) -> ValueError:
    return ValueError(
        f"{path} must be text, and byte {offset} of it is {found}; what can be read is "
        f"{SUPPORTED}: convert the file, or leave it out (a glob such as 'folder/**/*.txt' picks "
        "files by name)"
    )


def _decode(path: Path, data: bytes, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        found = f"0x{data[error.start]:02x}, not valid UTF-8 ({error.reason})"
        raise _not_text(path, offset + error.start, found) from error


def _read_text(path: Path) -> str:
    with _opened(path) as file:
        data = file.read()
    # UTF-16 and most binary formats hold zero bytes; text does not.
    if (offset := data.find(b"\0")) >= 0:
        raise _not_text(path, offset, "0x00, as in binary files")
    mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    return _decode(path, data[len(mark) :], len(mark))


def _read_records(path: Path, text_field: str) -> Iterator[str]:
    offset = 0
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            mark = codecs.BOM_UTF8 if number == 1 and line.startswith(codecs.BOM_UTF8) else b""
            content = _decode(path, line[len(mark) :], offset + len(mark))
            offset += len(line)
            if content.strip():
                yield _record_text(content, text_field, where=f"{path}, line {number}")


def _record_text(line: str, text_field: str, *, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: {line.strip()[:60]!r} must be one JSON object a line ({error}); correct "
            "the line, or rename the file if it is not JSON Lines"
        ) from error
    if not isinstance(record, dict):
        raise ValueError(
            f"{where}: a record must be a JSON object with the field {text_field!r}, and this "
            f"is {line.strip()[:60]!r}; correct the line"
        )
    if text_field not in record:
        raise ValueError(
            f"{where}: the record must have the field {text_field!r}, and it has "
            f"{sorted(record)}; set text_field in [data] to the one that holds the text"
        )
    text = record[text_field]
    if not isinstance(text, str):
        raise ValueError(
            f"{where}: the field {text_field!r} must be a string, and it is "
            f"{type(text).__name__}; set text_field in [data] to the one that holds the text"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: the field {text_field!r} must be Unicode text, and character "
            f"{error.start} is half of a surrogate pair ({text[error.start]!r}); correct the line"
        ) from error
    return text
