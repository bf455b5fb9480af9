"""A cell: one thing to compute, what decides its result, and the result as a line of JSON."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from retnet.bench.machine import Provenance

SCHEMA = 1

MODELS = "models"
"""Where in the work folder trained models lie, and the tokens that they read."""

Label = str | int | float
Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a cell may work.

    Attributes:
        work: folder for what it makes on the way; the same for all cells and processes.
        root: where the relative paths of a user's files start.
    """

    work: Path
    root: Path


class Outcome(NamedTuple):
    """What a task found.

    Attributes:
        metrics: numbers by name.
        lines: JSON objects that tell more, such as records of a bench.
    """

    metrics: Metrics
    lines: Sequence[Mapping[str, Any]] = ()


@runtime_checkable
class Task(Protocol):
    """What a cell computes; it travels to other processes, so it can be pickled."""

    @property
    def cost(self) -> float:
        """Work to expect, in any unit that tasks of one `kind` share."""
        ...

    @property
    def kind(self) -> str:
        """Tasks of one kind take a time in proportion to their cost."""
        ...

    def settings(self) -> dict[str, Any]:
        """All that decides the result, as JSON: no path, no machine."""
        ...

    def terms(self) -> dict[str, Any]:
        """The part of the settings that all cells of a comparison share, such as the text."""
        ...

    def run(self, place: Place) -> Outcome:
        """Compute; called again after a kill, it may go on with what it left."""
        ...

    def seconds(self, place: Place) -> float:
        """How long it will take here, by a measurement of a moment."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A task with the labels that a report knows it by.

    Attributes:
        labels: such as model, seed and learning rate.
        task: what to compute.
    """

    labels: Mapping[str, Label]
    task: Task

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join(
            str(value) if key == "model" else f"{key.replace('_', ' ')} {value}"
            for key, value in self.labels.items()
        )

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits: equal settings, equal result."""
        return digest({"labels": dict(self.labels), "settings": self.task.settings()})


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a cell.

    Attributes:
        experiment: whose cell it is.
        scale: at which it ran.
        key: of the cell.
        labels: of the cell.
        terms: digest of its task's terms.
        settings: of its task.
        metrics: what was measured.
        lines: what else the task has to tell.
        seconds: that it took.
        source: machine, versions and commit.
        utc: when it ended, ISO 8601.
    """

    experiment: str
    scale: str
    key: str
    labels: Mapping[str, Label]
    terms: str
    settings: Mapping[str, Any]
    metrics: Metrics
    lines: Sequence[Mapping[str, Any]] = ()
    seconds: float
    source: Provenance
    utc: str
    schema: int = field(default=SCHEMA)

    def to_json(self) -> str:
        """One line without its newline."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Read a line back.

        Raises:
            ValueError: it is no JSON object, or the schema is another's.
        """
        line = json.loads(text)
        if not isinstance(line, dict) or line.get("schema") != SCHEMA:
            raise ValueError(
                f"{text:.60} is no result of schema {SCHEMA}; the version that wrote it reads it"
            )
        try:
            source, lines = Provenance(**line["source"]), tuple(line.get("lines", ()))
            return cls(**{**line, "source": source, "lines": lines})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{text:.60} is no whole result ({error}); delete the line") from None


def digest(content: Any) -> str:
    """Sixteen hexadecimal digits of what JSON can say."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
