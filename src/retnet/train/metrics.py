"""metrics.jsonl: one JSON object a line, each with the step and the tokens it stands for."""

import json
import os
from pathlib import Path
from typing import Any

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


class MetricsLog:
    """Appends to a metrics file; a line is on its way to the disk when `append` returns."""

    def __init__(self, path: Path, *, before_step: int) -> None:
        """Open the file and forget what lies at or after a step, which will be written again.

        Args:
            path: made if it does not exist.
            before_step: lines with a smaller step are kept.
        """
        kept = [line for line in read_metrics(path) if line["step"] < before_step]
        text = "".join(_line(metrics) for metrics in kept)
        write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self._file = path.open("a", encoding="utf-8")

    def append(self, metrics: Metrics) -> None:
        """Write a line."""
        self._file.write(_line(metrics))
        self._file.flush()

    def sync(self) -> None:
        """Return when all lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
