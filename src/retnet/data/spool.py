"""Documents that can be read only once, kept on disk for as long as they are needed."""

from collections.abc import Iterable, Iterator
from pathlib import Path

LENGTH_BYTES = 8


class Spool:
    """Reads documents at the first iteration, and a copy of them on disk at every later one.

    What comes over a network is so read once, and the same text each time.

    Args:
        documents: to be iterated once.
        path: a file to write; whoever made the spool deletes it.
    """

    def __init__(self, documents: Iterable[str], path: Path) -> None:
        self._documents = documents
        self._path = path
        self._whole = False

    def __iter__(self) -> Iterator[str]:
        return self._read() if self._whole else self._write()

    def _write(self) -> Iterator[str]:
        with self._path.open("wb") as file:
            for text in self._documents:
                data = text.encode()
                file.write(len(data).to_bytes(LENGTH_BYTES, "little"))
                file.write(data)
                yield text
        self._whole = True

    def _read(self) -> Iterator[str]:
        with self._path.open("rb") as file:
            while head := file.read(LENGTH_BYTES):
                yield file.read(int.from_bytes(head, "little")).decode()
