"""Tables: records as Markdown for the docs, and as text for the terminal.

A table is a pure function of records, so that CI can compare the docs with the committed lines.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from retnet.bench.record import Record, Scalar, latest, read_records
from retnet.bench.timing import Spread
from retnet.evaluate import key_value_cache_bytes
from retnet.hub import write_atomic

Row = tuple[str, ...]
Key = tuple[Scalar, ...]

# What has no natural order is sorted like this: exact before rounded, ours before the peer's.
_ORDER = (
    ("float64", "float32", "bfloat16"),
    ("retnet",),
    ("chunkwise", "parallel", "recurrent"),
)
_RANK = {name: float(rank) for names in _ORDER for rank, name in enumerate(names)}
_BLOCK = re.compile(r"(<!-- begin: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


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
    return {key: found[key] for key in sorted(found, key=_sortable)}


def ops_table(records: Iterable[Record]) -> Table:
    """Retention alone: time, operations per second, torchscale beside ours."""
    records = [record for record in records if record.bench == "op/retention"]
    fields = ("B", "H", "D_k", "D_v", "T", "dtype", "form", "by")
    labels, rows = [], []
    for passes in ("fwd", "fwdbwd"):
        mine = [record for record in records if record.metric.startswith(f"{passes}_")]
        for (*sizes, T, dtype, form, by), metrics in pivot(mine, *fields).items():
            shape = (f"{name} {size}" for name, size in zip(fields, sizes, strict=False))
            labels.append((*shape, f"T {T:,}", str(dtype), passes.replace("fwdb", "fwd+b")))
            rows.append(
                (
                    f"{by}, {form}",
                    _spread(metrics[f"{passes}_ms"]),
                    number(metrics[f"{passes}_gflops"].median),
                    f"{metrics[f'{passes}_share_of_matmul'].median:.0%}",
                    _ratio(metrics.get(f"{passes}_time_over_retnet")),
                )
            )
    columns = ("case", "code, form", "ms", "GFLOP/s", "of matmul peak", "its time / ours")
    return _table("Retention alone", columns, labels, rows, records)


def train_table(records: Iterable[Record]) -> Table:
    """Whole training steps: tokens per second and peak memory, torchscale beside ours."""
    records = [record for record in records if record.bench == "train_step"]
    fields = ("parameters", "B", "T", "precision", "by")
    labels, rows = [], []
    for (size, B, T, precision, by), metrics in pivot(records, *fields).items():
        labels.append((_millions(size), f"B {B}", f"T {T:,}", str(precision)))
        rows.append(
            (
                str(by),
                _spread(metrics["tokens_per_s"]),
                number(metrics["peak_mib"].median),
                number(metrics["peak_over_start_mib"].median),
                _ratio(metrics.get("step_time_over_retnet")),
            )
        )
    memory = ("process at most, MiB", "without libraries, MiB")
    columns = ("case", "code", "tokens/s", *memory, "its time / ours")
    return _table("Training step", columns, labels, rows, records)


def forms_table(records: Iterable[Record]) -> Table:
    """Disagreement between forms: largest difference of logits from the float64 recurrence."""
    records = [record for record in records if record.bench == "forms"]
    cells: dict[Key, dict[Scalar, dict[str, Spread]]] = {}
    for (*key, form), metrics in pivot(records, "model", "gain", "dtype", "form").items():
        cells.setdefault(tuple(key), {})[form] = metrics
    forms = ("recurrent", "parallel", "chunkwise")
    labels = [(str(model), f"weights x {gain}", str(dtype)) for model, gain, dtype in cells]
    rows = []
    for found in cells.values():
        worst = {name: max(m[name].median for m in found.values()) for name in found[forms[0]]}
        errors = (found[form]["max_abs"].median for form in forms)
        rows.append(tuple(f"{x:.1e}" for x in (*errors, worst["apart"], worst["relative"])))
    columns = ("case", *forms, "between two forms", "worst / deviation of logits")
    return _table("Disagreement between forms", columns, labels, rows, records)


def decode_table(records: Iterable[Record]) -> Table:
    """Decoding after ever longer texts: time and memory of a token."""
    records = [record for record in records if record.bench == "decode"]
    fields = ("model", "parameters", "num_layers", "d_model", "dtype", "context")
    labels, rows = [], []
    for (model, size, L, D, dtype, context), metrics in pivot(records, *fields).items():
        labels.append((str(model), _millions(size), str(dtype), f"{context:,}"))
        rows.append(
            (
                _spread(metrics["token_ms"]),
                mebibytes(metrics["state_bytes"].median),
                mebibytes(float(key_value_cache_bytes(int(L), int(D), int(context)))),
                number(metrics["process_mib"].median),
                number(metrics["prefill_tokens_per_s"].median),
            )
        )
    memory = ("state, MiB", "16-bit key-value cache, MiB (computed)", "process, MiB")
    columns = ("tokens read", "ms per token", *memory, "reading, tokens/s")
    return _table("Decoding", columns, labels, rows, records)


def document_table(records: Iterable[Record]) -> Table:
    """Training on one document: memory of the process, read on or in one step."""
    records = [record for record in records if record.bench == "document"]
    fields = ("parameters", "precision", "seq_len", "carried", "tokens")
    labels, rows = [], []
    found = list(pivot(records, *fields).items())
    marks = [key for key, _ in found if key[3]]
    shown = {marks[round(i / 4 * (len(marks) - 1))] for i in range(5)} if marks else set()
    for key, metrics in found:
        size, precision, T, carried, tokens = key
        if carried and key not in shown:
            continue
        way = f"steps of {T:,} tokens" if carried else "one step"
        labels.append((_millions(size), str(precision), way, f"{tokens:,}"))
        rows.append((number(metrics["process_mib"].median), number(metrics["tokens_per_s"].median)))
    columns = ("tokens trained on", "process, MiB", "tokens/s")
    return _table("Training on one document", columns, labels, rows, records)


def kills_table(records: Iterable[Record]) -> Table:
    """A run killed again and again: when the kills hit, and how long it took."""
    records = [record for record in records if record.bench == "kills"]
    labels, rows = [], []
    for (steps, every, kills), metrics in pivot(records, "steps", "save_every", "kills").items():
        labels.append((f"{steps:,} steps, saved every {every}", f"{kills} kills"))
        hit = (metrics.get(f"kills_{moment}") for moment in ("starting", "training", "saving"))
        rows.append(
            (
                *(f"{spread.median:.0f}" if spread else "0" for spread in hit),
                number(metrics["different_bits"].median),
                *(f"{metrics[name].median / 60:.1f}" for name in ("whole_s", "killed_s")),
            )
        )
    hits = ("while starting", "while training", "while saving")
    times = ("minutes, never interrupted", "minutes, killed")
    columns = ("run", *hits, "different bits", *times)
    return _table("A run killed again and again", columns, labels, rows, records)


def machine_table(records: Iterable[Record]) -> Table:
    """The most that the machine does: what shares are shares of."""
    records = [record for record in records if record.bench == "machine"]
    names = {
        "float32/matmul_gflops": "float32 matrix product, GFLOP/s",
        "bfloat16/matmul_gflops": "bfloat16 matrix product, GFLOP/s",
        "copy_gb_per_s": "copy, GB/s read and written",
    }
    found = pivot(records).get((), {})
    rows = [(name, _spread(found[metric])) for metric, name in names.items() if metric in found]
    return Table("Ceilings of the machine", ("what", "median"), rows, caption(records))


TABLES: dict[str, Callable[[Iterable[Record]], Table]] = {
    "ops": ops_table,
    "train": train_table,
    "forms": forms_table,
    "decode": decode_table,
    "document": document_table,
    "kills": kills_table,
    "machine": machine_table,
}


def update_docs(page: Path, results: Path) -> bool:
    """Write each table between its markers, `<!-- begin: ops -->` and `<!-- end -->`.

    Quick runs' records do not count.

    Args:
        page: a Markdown file.
        results: folder of records.

    Returns:
        Whether the page changed.

    Raises:
        ValueError: a marker names no table, or the page has no marker.
    """
    records = [record for record in read_records(results) if not record.quick]
    old = page.read_text(encoding="utf-8")
    if not _BLOCK.search(old):
        raise ValueError(
            f"{page} has no <!-- begin: NAME --> line with an <!-- end --> after it; add them "
            f"where a table belongs, NAME one of {', '.join(TABLES)}"
        )

    def block(match: re.Match[str]) -> str:
        begin, name, _, end = match.groups()
        if name not in TABLES:
            raise ValueError(f'{page}: no table "{name}"; name one of {", ".join(TABLES)}')
        table = TABLES[name](records)
        text = table.markdown() if table.rows else f"No results yet: `retnet bench {name}`.\n"
        return f"{begin}\n{text}\n{end}"

    new = _BLOCK.sub(block, old)
    if new != old:
        write_atomic(page, lambda path: path.write_text(new, encoding="utf-8"))
    return new != old


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
        "Medians; in brackets the middle three fifths."
    )


def _table(
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
    return Table(title, columns, named, where)


def number(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def mebibytes(size: float) -> str:
    """Bytes in MiB."""
    return number(size / 2**20)


def _spread(spread: Spread) -> str:
    return f"{number(spread.median)} ({number(spread.p20)}-{number(spread.p80)})"


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.median:.2f} ({spread.p20:.2f}-{spread.p80:.2f})"


def _tiny(value: float) -> str:
    return f"{value:.1e}"


def _millions(count: Scalar) -> str:
    return f"{float(count) / 1e6:.3g} M parameters"


def _sortable(key: Key) -> tuple[tuple[int, float, str], ...]:
    """Numbers by size, known names by their rank, others after them by the alphabet."""
    unranked = float(len(_RANK))
    return tuple(
        (1, _RANK.get(part, unranked), part) if isinstance(part, str) else (0, float(part), "")
        for part in key
    )
