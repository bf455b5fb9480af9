"""Tables: text made of records; what every table needs."""

from collections.abc import Iterable
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from retnet.bench.record import Record, Scalar, latest
from retnet.bench.timing import Spread

Row = tuple[str, ...]
Key = tuple[Scalar, ...]

# What has no natural order is sorted like this: exact before rounded, ours before the peer's.
_ORDER = (
    ("float64", "float32", "bfloat16"),
    ("retnet",),
    ("chunkwise", "parallel", "recurrent"),
)
_RANK = {name: float(rank) for names in _ORDER for rank, name in enumerate(names)}


class Table(NamedTuple):
    """A table as text.

    Attributes:
        title: what it shows.
        columns: their heads, with units.
        rows: as many cells in each.
        caption: on what, with what and when it was measured.
    """

    title: str
    columns: Row
    rows: list[Row]
    caption: str

    def markdown(self) -> str:
        """The table and its caption, for a page that has its own headings."""
        lines = [self.columns, ("---", *("---:" for _ in self.columns[1:])), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + f"\n\n{self.caption}\n"

    def rich(self) -> RichTable:
        """The table for a terminal."""
        table = RichTable(
            title=self.title,
            caption=self.caption,
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for index, column in enumerate(self.columns):
            words = (word for row in self.rows for word in row[index].split())
            table.add_column(
                column,
                justify="right" if index else "left",
                min_width=max(map(len, words), default=0),  # a number cut in two misleads
            )
        for row in self.rows:
            table.add_row(*row)
        return table


def pivot(records: Iterable[Record], *fields: str) -> dict[Key, dict[str, Spread]]:
    """Metrics of each combination of case fields, the latest of each, in sorted order."""
    found: dict[Key, dict[str, Spread]] = {}
    for record in latest(records, *fields):
        key = tuple(record.case[field] for field in fields)
        found.setdefault(key, {})[record.metric] = record.spread
    return {key: found[key] for key in sorted(found, key=sortable)}


def caption(records: Iterable[Record]) -> str:
    """Where the figures of a table come from; of one machine, as `latest` chooses."""
    records = list(records)
    if not records:
        return ""
    last = records[-1].source
    mine = [
        record
        for record in records
        if (record.source.device, record.source.threads) == (last.device, last.threads)
    ]
    commits = {f"{r.source.commit}{' and changes' * r.source.dirty}" for r in mine}
    days = sorted({record.utc[:10] for record in mine})
    return (
        f"{last.device}, {last.threads} thread{'s' * (last.threads != 1)}, torch {last.torch}, "
        f"Python {last.python}; commit {', '.join(sorted(commits))}; "
        f"{days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'}. "
        "Medians."
    )


def make_table(
    title: str, columns: Row, labels: list[Row], rows: list[Row], records: list[Record]
) -> Table:
    """A table with what distinguishes its rows in front, and what they share in the caption."""
    shared = [
        index
        for index in range(len(labels[0]) - 1 if labels else 0)  # the last part always stays
        if len({label[index] for label in labels}) == 1
    ]
    named = [
        (", ".join(part for index, part in enumerate(label) if index not in shared), *row)
        for label, row in zip(labels, rows, strict=True)
    ]
    common = ", ".join(labels[0][index] for index in shared)
    where = f"{common}. {caption(records)}" if common else caption(records)
    if any(cell.endswith(")") for row in rows for cell in row):
        where = f"{where.removesuffix('.')}; in brackets the middle three fifths."
    return Table(title, columns, named, where)


def number(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def mebibytes(size: float) -> str:
    """Bytes in MiB."""
    return number(size / 2**20)


def spread_text(spread: Spread) -> str:
    """Median, and the middle three fifths."""
    return f"{number(spread.median)} ({number(spread.p20)}-{number(spread.p80)})"


def ratio_text(spread: Spread | None) -> str:
    """The same with two digits; nothing for None."""
    if spread is None:
        return ""
    return f"{spread.median:.2f} ({spread.p20:.2f}-{spread.p80:.2f})"


def short_ratio(spread: Spread | None) -> str:
    """The median alone."""
    return "" if spread is None else f"{spread.median:.2f}"


def share_text(spread: Spread | None) -> str:
    """In percent; nothing for None."""
    return "" if spread is None else f"{spread.median:.0%}"


def millions(count: Scalar) -> str:
    """Number of parameters."""
    return f"{float(count) / 1e6:.3g} M parameters"


def sortable(key: Key) -> tuple[tuple[int, float, str], ...]:
    """Numbers by size, known names by their rank, others after them by the alphabet."""
    unranked = float(len(_RANK))
    return tuple(
        (1, _RANK.get(part, unranked), part) if isinstance(part, str) else (0, float(part), "")
        for part in key
    )
