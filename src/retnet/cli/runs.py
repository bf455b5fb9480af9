"""Compare runs in a table, the best first, and in a picture of their curves.

A run is a folder that `retnet train` wrote. "bits" are held-out bits per byte;
the columns after "age" are the settings that are not the same in all runs.

Example: retnet runs runs --plot runs.png
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from tyro.conf import FlagCreatePairsOff, Positional, arg

from retnet.cli.options import parse
from retnet.cli.screen import note

if TYPE_CHECKING:
    from retnet.train.compare import RunSummary

HEADER = ("run", "size", "tokens", "step", "loss", "bits", "tokens/s", "of peak", "age")


LONGEST = 32
"""Characters of a setting; --json prints all of it."""

Row = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Options:
    """See the module."""

    dir: Annotated[Positional[Path], arg(metavar="DIR")] = Path("runs")
    """Folder of runs; they may lie up to two folders below it."""
    plot: Annotated[Path | None, arg(metavar="FILE")] = None
    """Draw the curves here; else to runs.png in DIR."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON instead of a table."""


def main(words: Sequence[str]) -> None:
    """Run `retnet runs`."""
    options = parse(Options, "runs", words, __doc__ or "")

    from retnet.train.compare import differences, rank_runs

    runs = rank_runs(_read(options.dir))
    differ = differences(runs)
    if options.json:
        print(json.dumps([_record(r, d) for r, d in zip(runs, differ, strict=True)], indent=2))
    else:
        _show([HEADER, *map(_row, runs)], [tuple(differ[0]), *map(_values, differ)])
    _draw(runs, options)


def _read(folder: Path) -> "list[RunSummary]":
    """All runs that can be read; of the others, why not."""
    from retnet.train.compare import find_runs, read_run

    runs = []
    for path in find_runs(folder):
        name = folder.resolve().name if path == folder else path.relative_to(folder).as_posix()
        try:
            runs.append(read_run(path, name))
        except ValueError as error:
            note(f"left out: {error}")
    if not runs:
        raise ValueError(f"{folder} holds no run that can be read; see above")
    return runs


def _draw(runs: "list[RunSummary]", options: Options) -> None:
    from retnet.train.plot import plot_runs

    path = options.plot or options.dir / "runs.png"
    title = f"{len(runs)} run{'s' * (len(runs) != 1)} in {options.dir}"
    try:
        plot_runs({run.name: run.metrics for run in runs}, path, title)
    except ModuleNotFoundError:
        note("no picture: matplotlib is missing; pip install 'retnet[plot]' brings it")
    except OSError as error:
        raise ValueError(
            f"the picture {path} cannot be written ({error}); name another file with --plot"
        ) from None
    else:
        note(f"curves in {path}")


def _record(run: "RunSummary", differs: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "parameters": run.parameters,
        "tokens": run.tokens,
        "step": run.step,
        "steps": run.steps,
        "finished": run.finished,
        "loss": run.loss,
        "valid_bits_per_byte_carried": run.bits_per_byte,
        "tokens_per_s": run.tokens_per_s,
        "mfu": run.mfu,
        "updated": datetime.fromtimestamp(run.updated, UTC).isoformat(timespec="seconds"),
        "differs": differs,
    }


def _show(results: list[Row], settings: list[Row]) -> None:
    """Print one table where it fits or where lines have no end, as in a pipe; else several."""
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    lines = _columns([a + b for a, b in zip(results, settings, strict=True)])
    tables = [lines]
    if console.is_terminal and max(map(len, lines)) > console.width:
        names = [row[:1] for row in results]
        tables = [_columns(results), *_fitted(names, settings, console.width)]
    for number, (header, *rows) in enumerate(tables):
        console.print(("\n" if number else "") + header, style="bold")
        console.print("\n".join(rows))


def _fitted(names: list[Row], settings: list[Row], width: int) -> list[list[str]]:
    """Tables of settings, each with the names and as many columns as the width has room for."""
    tables: list[list[str]] = []
    part = names
    for column in zip(*settings, strict=True):
        wider = [(*row, cell) for row, cell in zip(part, column, strict=True)]
        if part is not names and max(map(len, _columns(wider))) > width:
            tables.append(_columns(part))
            wider = [(*row, cell) for row, cell in zip(names, column, strict=True)]
        part = wider
    return [*tables, _columns(part)] if part is not names else tables


def _columns(rows: Sequence[Row]) -> list[str]:
    """Lines with aligned columns: the first one, a name, to the left, and the rest to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row(run: "RunSummary") -> Row:
    return (
        run.name,
        _count(run.parameters),
        _count(run.tokens),
        f"{run.step:,} done" if run.finished else f"{run.step:,}/{run.steps:,}",
        _number(run.loss, ".3f"),
        _number(run.bits_per_byte, ".3f"),
        _number(run.tokens_per_s, ",.0f"),
        _number(run.mfu, ".0%"),
        _age(time.time() - run.updated),
    )


def _values(differs: dict[str, Any]) -> Row:
    """Settings as text; of a long one, such as a list of files, the end tells most."""
    texts = [v if isinstance(v, str) else json.dumps(v) for v in differs.values()]
    return tuple(t if len(t) <= LONGEST else "..." + t[3 - LONGEST :] for t in texts)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _count(value: int | None) -> str:
    """A count with three figures, as 18.9M."""
    if value is None:
        return "-"
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= 0.9995 * size:  # 999,960 is 1M, not 1e+03k
            return f"{value / size:.3g}{unit}"
    return str(value)


def _age(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
