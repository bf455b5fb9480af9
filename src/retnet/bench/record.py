"""Records: one line of JSON for each result, append-only; docs are generated from them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from retnet.bench.machine import Provenance
from retnet.bench.timing import Spread

SCHEMA = 1

Scalar = str | int | float | bool


class GateFailed(RuntimeError):
    """What was to be measured computes something wrong, so it is not measured."""


@dataclass(frozen=True)
class Gate:
    """The verdict on a case's correctness.

    Attributes:
        passed: whether results may be recorded.
        why: what was compared with what.
    """

    passed: bool
    why: str

    def require(self) -> None:
        """Raise GateFailed unless passed."""
        if not self.passed:
            raise GateFailed(self.why)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One result.

    Attributes:
        bench: what was measured, and the name of the file: `op/retention`.
        case: what it was measured on: sizes, dtype, form, whose code.
        metric: name with its unit at the end, as `fwd_ms`.
        spread: of the repeated measurements.
        quick: toy sizes, which docs do not show.
        source: machine, versions and commit.
        utc: when, ISO 8601.
    """

    bench: str
    case: Mapping[str, Scalar]
    metric: str
    spread: Spread
    quick: bool
    source: Provenance
    utc: str

    def to_json(self) -> str:
        """One line without its newline."""
        line = {
            "schema": SCHEMA,
            "bench": self.bench,
            **self.case,
            "metric": self.metric,
            **self.spread._asdict(),
            "gate": "passed",
            "quick": self.quick,
            **asdict(self.source),
            "utc": self.utc,
        }
        return json.dumps(line)

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Read a line back.

        Raises:
            ValueError: it is no JSON object, a field is missing, or the schema is another's.
        """
        line = json.loads(text)
        if not isinstance(line, dict) or line.get("schema") != SCHEMA:
            raise ValueError(
                f"{text:.60} is no record of schema {SCHEMA}; the version that wrote it reads it"
            )
        if missing := sorted(RESERVED - line.keys()):
            raise ValueError(f"{text:.60} lacks {', '.join(missing)}; a record has all of them")
        return cls(
            bench=line["bench"],
            case={key: value for key, value in line.items() if key not in RESERVED},
            metric=line["metric"],
            spread=Spread(*(line[key] for key in Spread._fields)),
            quick=line["quick"],
            source=Provenance(**{key: line[key] for key in SOURCE}),
            utc=line["utc"],
        )


SOURCE = tuple(field.name for field in fields(Provenance))
RESERVED = {"schema", "bench", "metric", *Spread._fields, "gate", "quick", *SOURCE, "utc"}


class Recorder:
    """Appends results to files in a folder as they come, so that a crash loses none."""

    def __init__(self, folder: Path, source: Provenance, *, quick: bool) -> None:
        self.folder = folder
        self.records: list[Record] = []
        self._source = source
        self._quick = quick

    def add(
        self,
        bench: str,
        case: Mapping[str, Scalar],
        metrics: Mapping[str, Spread],
        gate: Gate,
    ) -> None:
        """Append one line for each metric to `<folder>/<bench>.jsonl`.

        Raises:
            GateFailed: the gate did not pass; nothing is written.
            ValueError: a case has a field whose name a record uses itself.
        """
        gate.require()
        if taken := sorted(RESERVED & case.keys()):
            raise ValueError(f"case field {', '.join(taken)} is a record's own; rename it")
        utc = datetime.now(UTC).isoformat(timespec="seconds")
        new = [
            Record(
                bench=bench,
                case=dict(case),
                metric=metric,
                spread=_rounded(spread),
                quick=self._quick,
                source=self._source,
                utc=utc,
            )
            for metric, spread in metrics.items()
        ]
        path = self.folder / f"{bench}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(record.to_json() + "\n" for record in new)
        self.records += new


def _rounded(spread: Spread) -> Spread:
    """Six digits: the rest is noise, and hides in a diff what changed."""
    median, p20, p80 = (float(f"{x:.6g}") for x in spread[:3])
    return Spread(median, p20, p80, spread.n)


def read_records(folder: Path) -> list[Record]:
    """All records of a folder, files by name, lines in the order they were written.

    Raises:
        ValueError: a line is no record; the message names the file and the line.
    """
    records = []
    for path in sorted(folder.rglob("*.jsonl")):
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                records.append(Record.from_json(text))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    return records


def latest(records: Iterable[Record], *fields: str) -> list[Record]:
    """The last record of each metric and each combination of these case fields.

    Only of the machine that was measured last: figures of two machines, or of two thread
    counts, must not stand in one table.
    """
    records = list(records)
    if not records:
        return []
    machine = _machine(records[-1])
    return list(
        {
            (record.metric, *(record.case.get(field) for field in fields)): record
            for record in records
            if _machine(record) == machine
        }.values()
    )


def _machine(record: Record) -> tuple[str, int]:
    return record.source.device, record.source.threads
