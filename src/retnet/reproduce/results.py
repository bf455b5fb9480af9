"""The results of an experiment: a file of JSON lines that grows by whole lines."""

import os
from pathlib import Path

from retnet.reproduce.cell import Result


def read_results(path: Path) -> list[Result]:
    """Results in the order they came; none where there is no file.

    A last line without its end is what a kill has left of a write, and does not count.

    Raises:
        ValueError: a line is no result; the message names file and line.
    """
    if not path.exists():
        return []
    results = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            results.append(Result.from_json(line.decode().rstrip("\n")))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return results


def append_result(path: Path, result: Result) -> None:
    """Add a line and see it to the disk; one write, so that processes may share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_torn_line(path)
    with path.open("ab", buffering=0) as file:
        file.write(result.to_json().encode() + b"\n")
        os.fsync(file.fileno())


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)
