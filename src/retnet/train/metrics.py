"""metrics.jsonl: one JSON object a line, each with the step and the tokens it stands for."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from retnet.hub import write_atomic

Metrics = dict[str, Any]


def read_metrics(path: str | Path) -> list[Metrics]:
    """Lines of a metrics file; none if it does not exist.

    A last line that a crash has cut short is left out.

    Raises:
        ValueError: another line is no JSON object with a step.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    lines.pop()  # empty, or without its line end
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


@runtime_checkable
class Sink(Protocol):
    """Shows a run's metrics elsewhere; metrics.jsonl stays the truth."""

    def append(self, metrics: Metrics) -> None:
        """Show one more line of metrics.jsonl."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


OpenSink = Callable[[Path, Sequence[Metrics]], Sink]
"""Makes a sink from the run's folder and the lines so far, so that what it shows is just those."""


class MetricsLog:
    """Appends to a metrics file; a line is on its way to the disk when `append` returns."""

    def __init__(self, path: Path, *, before_step: int, sinks: Sequence[OpenSink] = ()) -> None:
        """Open the file and forget what lies at or after a step, which will be written again.

        Args:
            path: made if it does not exist.
            before_step: lines with a smaller step are kept.
            sinks: where else to show the lines.

        Raises:
            ValueError: the disk refuses.
        """
        self._path = path
        kept = [line for line in read_metrics(path) if line["step"] < before_step]
        text = "".join(_line(metrics) for metrics in kept)
        with self._writing():
            write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
            self._file = path.open("a", encoding="utf-8")
            self._sinks = [open_sink(path.parent, kept) for open_sink in sinks]

    def append(self, metrics: Metrics) -> None:
        """Write a line.

        Raises:
            ValueError: the disk refuses.
        """
        with self._writing():
            self._file.write(_line(metrics))
            self._file.flush()
            for sink in self._sinks:
                sink.append(metrics)

    def sync(self) -> None:
        """Return when all lines are on the disk.

        Raises:
            ValueError: the disk refuses.
        """
        with self._writing():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        # What a full disk did not take is lost already, and was complained about.
        with suppress(OSError):
            self._file.close()
        for sink in self._sinks:
            with suppress(OSError):
                sink.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"the log {self._path} cannot be written ({error}); the last checkpoint is kept: "
                "make room or mend the disk, and run the same command again"
            ) from error


def _line(metrics: Metrics) -> str:
    return json.dumps(metrics, ensure_ascii=False, allow_nan=False) + "\n"


def _parse(line: str, where: str) -> Metrics:
    try:
        metrics = json.loads(line)
    except json.JSONDecodeError:
        metrics = None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("step"), int):
        raise ValueError(
            f"{where} ({line[:40]!r}) must be a JSON object with a step; restore or delete the line"
        )
    return metrics
