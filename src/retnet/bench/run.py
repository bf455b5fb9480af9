"""Run a bench by name, silently or before someone's eyes."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from retnet.bench.decode import bench_decode
from retnet.bench.document import bench_document
from retnet.bench.forms import bench_forms
from retnet.bench.gpu import GPU_BENCHES, GPU_TABLES
from retnet.bench.kills import bench_kills
from retnet.bench.op import bench_ops
from retnet.bench.prefill import bench_prefill
from retnet.bench.record import Record
from retnet.bench.rwkv import bench_rwkv
from retnet.bench.scan import bench_scan
from retnet.bench.serve import bench_serve
from retnet.bench.serving.beside import bench_beside
from retnet.bench.serving.load import bench_load
from retnet.bench.serving.soak import bench_soak
from retnet.bench.session import Session, Tell
from retnet.bench.sessions import bench_sessions
from retnet.bench.table import Table
from retnet.bench.tables import TABLES
from retnet.bench.train_step import bench_train

SUITE = "cpu"
OF_A_CHECKPOINT: dict[str, Callable[[Session, Path | None], None]] = {
    "forms": bench_forms,
    "decode": bench_decode,
}
OF_CASES: dict[str, Callable[[Session], None]] = {
    "ops": bench_ops,
    "scan": bench_scan,
    "rwkv": bench_rwkv,
    "train": bench_train,
    "prefill": bench_prefill,
    "document": bench_document,
    "kills": bench_kills,
    "serve": bench_serve,
    "beside": bench_beside,
    "load": bench_load,
    "soak": bench_soak,
    "sessions": bench_sessions,
    **GPU_BENCHES,
}
IN_SUITE = ("ops", "train", "prefill", "decode")
BENCHES = (
    *(
        SUITE,
        "ops",
        "scan",
        "rwkv",
        "train",
        "prefill",
        "decode",
        "forms",
        "document",
        "kills",
        "serve",
        "beside",
        "load",
        "soak",
        "sessions",
    ),
    *GPU_BENCHES,
)
SHOWN = {
    "ops": ("machine", "ops"),
    "prefill": ("prefill", "reading"),
    "gpu": tuple(GPU_TABLES),
}
"""Tables of a bench that has others than the one of its name."""


class BenchResult(NamedTuple):
    """What a bench found.

    Attributes:
        records: in the order in which they were written.
        tables: of these records.
        skipped: what was left out because something is not installed, and how to install it.
        failed: cases without a record, because what they compute is wrong, and in what.
        pictures: files drawn.
    """

    records: list[Record]
    tables: list[Table]
    skipped: list[str]
    failed: list[str]
    pictures: list[Path]


def run_bench(
    name: str,
    *,
    out: Path,
    quick: bool = False,
    checkpoint: Path | None = None,
    minutes: float | None = None,
    progress: Tell | None = None,
) -> BenchResult:
    """Run a bench.

    Args:
        name: one of BENCHES; `cpu` is several of them in a row, without their longest cases.
        out: folder to whose `<bench>.jsonl` files results are appended as they come.
        quick: toy sizes and short times, to see that everything works; docs do not show them.
        checkpoint: for `forms` and `decode`, a model to measure in place of a fresh one.
        minutes: for `soak`, how long; None for ten.
        progress: called with what is measured next, the number of things done, and of all.

    Raises:
        ValueError: there is no such bench, or it takes no checkpoint or no minutes.
    """
    if name not in BENCHES:
        raise ValueError(f'no bench "{name}"; choose one of {", ".join(BENCHES)}')
    if checkpoint is not None and name not in OF_A_CHECKPOINT:
        raise ValueError(
            f"bench {name} measures fixed cases and takes no checkpoint ({checkpoint}); "
            f"{' and '.join(OF_A_CHECKPOINT)} do"
        )
    if minutes is not None and (name != "soak" or minutes <= 0):
        raise ValueError(f"minutes ({minutes:g}) must be positive, and are of the bench soak alone")
    session = Session(out, quick=quick, suite=name == SUITE, minutes=minutes, progress=progress)
    parts = IN_SUITE if name == SUITE else (name,)
    for part in parts:
        try:
            if part in OF_A_CHECKPOINT:
                OF_A_CHECKPOINT[part](session, checkpoint)
            else:
                OF_CASES[part](session)
        except Exception as error:  # a peer's own, or too little memory: the others must still run
            if len(parts) == 1:
                raise
            session.fail(part, f"{type(error).__name__}: {error}")
    records = session.recorder.records
    tables = [TABLES[table](records) for part in parts for table in SHOWN.get(part, (part,))]
    return BenchResult(records, tables, session.skipped, session.failed, session.pictures)


def show_bench(
    name: str,
    *,
    out: Path,
    quick: bool = False,
    checkpoint: Path | None = None,
    minutes: float | None = None,
    console: Console | None = None,
) -> BenchResult:
    """Run a bench with a progress bar, and print its tables and what was left out.

    Args:
        name: as for `run_bench`, which says the rest.
        out: likewise.
        quick: likewise.
        checkpoint: likewise.
        minutes: likewise.
        console: where to show it; None is standard output.
    """
    console = Console() if console is None else console
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # Drawn only between cases, not by a thread that would take its turns from what is timed.
    with Progress(
        *columns,
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(name, total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total, refresh=True)
            if not console.is_terminal:
                console.print(f"{done}/{total} {what}", markup=False, highlight=False)

        result = run_bench(
            name, out=out, quick=quick, checkpoint=checkpoint, minutes=minutes, progress=tell
        )
    for table in result.tables:
        if table.rows:
            console.print(table.rich())
    for text in (*result.skipped, *result.failed):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return result
