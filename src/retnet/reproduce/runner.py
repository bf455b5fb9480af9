"""Run an experiment cell by cell: what is done stays done, and processes share the rest."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from retnet.bench.machine import Provenance, provenance
from retnet.reproduce.cell import Cell, Outcome, Place, Result, digest
from retnet.reproduce.executors import open_executor
from retnet.reproduce.experiment import Experiment, Plan, Setup
from retnet.reproduce.results import append_result, read_results
from retnet.reproduce.training import Stopped


class Tally(NamedTuple):
    """How far an experiment is.

    Attributes:
        done: cells with a result.
        total: cells in all, so far as is known.
        seconds_left: of one who goes on like this; None if nothing is known yet.
        what: the cells that just began or ended.
        result: of the one that just ended, if one did.
    """

    done: int
    total: int
    seconds_left: float | None
    what: str
    result: Result | None


Tell = Callable[[Tally], None]


@dataclass(frozen=True, kw_only=True)
class Means:
    """With what to run.

    Attributes:
        place: folders.
        results: the file of results.
        workers: processes to spread the cells over; 1 is this one.
        cluster: address of a scheduler that has these workers; empty: they are on this machine.
        minutes: after which no further cell begins; infinite by default.
    """

    place: Place
    results: Path
    workers: int = 1
    cluster: str = ""
    minutes: float = math.inf

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers ({self.workers}) must be at least 1; raise it")
        if not self.minutes > 0:
            raise ValueError(f"minutes ({self.minutes}) must be above 0; leave it out for no end")


class Pace:
    """Seconds of cells to come, from those of cells done, or from a measurement before them."""

    def __init__(self, measured: Mapping[str, float]) -> None:
        """Start with measured seconds for each unit of cost, by kind; they may be missing."""
        self._measured = dict(measured)
        self._done: dict[str, list[tuple[float, float]]] = {}

    def add(self, cell: Cell, seconds: float) -> None:
        """Learn from a cell that is done."""
        self._done.setdefault(cell.task.kind, []).append((cell.task.cost, seconds))

    def seconds(self, cells: Sequence[Cell]) -> float | None:
        """How long cells take one after the other; None if nothing is known at all."""
        drift = self._drift()
        known = {kind: drift * rate for kind, rate in self._measured.items()}
        known |= {kind: _rate(pairs) for kind, pairs in self._done.items()}
        if not known:
            return None
        usual = sum(known.values()) / len(known)
        return math.fsum(cell.task.cost * known.get(cell.task.kind, usual) for cell in cells)

    def _drift(self) -> float:
        """How much longer cells took than was measured before."""
        both = self._measured.keys() & self._done.keys()
        if not both:
            return 1.0
        took = math.fsum(seconds for kind in both for _, seconds in self._done[kind])
        said = math.fsum(
            self._measured[kind] * cost for kind in both for cost, _ in self._done[kind]
        )
        return took / said


def _rate(pairs: Sequence[tuple[float, float]]) -> float:
    return math.fsum(seconds for _, seconds in pairs) / math.fsum(cost for cost, _ in pairs)


def measured_pace(
    experiment: Experiment, setup: Setup, means: Means, tell: Callable[[str], None]
) -> Pace:
    """Take the time of a moment of each kind of cell that has no result yet."""
    done = {result.key: result for result in read_results(means.results)}
    plan = experiment.plan(setup, done)
    kinds = {cell.task.kind: cell for cell in (*plan.cells, *plan.later) if cell.key not in done}
    measured = {}
    for kind, cell in kinds.items():
        tell(cell.name.partition(",")[0])
        measured[kind] = cell.task.seconds(means.place) / cell.task.cost
    return Pace(measured)


def run_experiment(
    experiment: Experiment,
    setup: Setup,
    means: Means,
    *,
    pace: Pace | None = None,
    tell: Tell = lambda _: None,
) -> list[Result]:
    """Run the cells that have no result yet.

    Args:
        experiment: whose cells.
        setup: with what.
        means: where, and how many at a time.
        pace: what is known of times.
        tell: called when a cell begins and when it ends.

    Returns:
        All results of the file, in the order they came.

    Raises:
        KeyboardInterrupt: a cell was asked to stop; what it has done is saved.
        ValueError: a cell cannot be computed, or the file has results of other settings.
    """
    return _Run(experiment, setup, means, pace or Pace({}), tell).run()


class _Run:
    def __init__(
        self, experiment: Experiment, setup: Setup, means: Means, pace: Pace, tell: Tell
    ) -> None:
        self._experiment, self._setup, self._means = experiment, setup, means
        self._pace, self._tell = pace, tell
        self._results = read_results(means.results)
        self._elsewhere = _by_settings(means.results, setup.scale.name)
        self._ends = time.monotonic() + 60 * means.minutes
        self._running: dict[Future[tuple[Outcome, float, Provenance]], Cell] = {}

    def run(self) -> list[Result]:
        self._refuse_other_terms()
        self._plan = self._planned()
        with open_executor(self._means.workers, self._means.cluster) as executor:
            while True:
                self._fill(executor)
                if not self._running:
                    return self._results
                for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                    self._take(future)

    def _refuse_other_terms(self) -> None:
        """Models that read other text, or for longer, must not stand in one table."""
        plan = self._experiment.plan(self._setup, {})
        ours = {digest(cell.task.terms()) for cell in (*plan.cells, *plan.later)}
        if any(result.terms not in ours for result in self._results):
            raise ValueError(
                f"{self._means.results} has results on other texts, tests or budgets than are "
                "asked for now, and they cannot stand in one table; ask for the same, or name "
                "another folder with --results"
            )

    def _planned(self) -> Plan:
        return self._experiment.plan(self._setup, {r.key: r for r in self._results})

    def _fill(self, executor: Executor) -> None:
        """Begin cells until every worker has one."""
        while len(self._running) < self._means.workers and time.monotonic() < self._ends:
            todo = self._open()
            if not todo:
                return
            known = self._elsewhere.get(digest(todo[0].task.settings()))
            if known is not None:
                self._keep(todo[0], self._taken_over(todo[0], known))
                continue
            self._say(f"{todo[0].name} ...", None)
            future = executor.submit(run_cell, todo[0], self._means.place)
            self._running[future] = todo[0]

    def _take(self, future: "Future[tuple[Outcome, float, Provenance]]") -> None:
        cell = self._running.pop(future)
        try:
            found, seconds, source = future.result()
        except Stopped:
            raise KeyboardInterrupt from None
        self._pace.add(cell, seconds)
        result = Result(
            experiment=self._experiment.name,
            scale=self._setup.scale.name,
            key=cell.key,
            terms=digest(cell.task.terms()),
            labels=dict(cell.labels),
            settings=cell.task.settings(),
            metrics=found.metrics,
            lines=found.lines,
            seconds=round(seconds, 2),
            source=source,
            utc=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._keep(cell, result)

    def _taken_over(self, cell: Cell, known: Result) -> Result:
        """What another experiment has found with equal settings, as this one's result."""
        return replace(
            known,
            experiment=self._experiment.name,
            key=cell.key,
            terms=digest(cell.task.terms()),
            labels=dict(cell.labels),
        )

    def _keep(self, cell: Cell, result: Result) -> None:
        append_result(self._means.results, result)
        self._results.append(result)
        self._plan = self._planned()
        self._say(cell.name, result)

    def _open(self) -> list[Cell]:
        """Cells that could begin."""
        busy = {cell.key for cell in self._running.values()}
        known = {result.key for result in self._results} | busy
        return [cell for cell in self._plan.cells if cell.key not in known]

    def _say(self, what: str, result: Result | None) -> None:
        left = [*self._open(), *self._plan.later, *self._running.values()]
        done = {result.key for result in self._results}
        finished = sum(cell.key in done for cell in self._plan.cells)
        seconds = self._pace.seconds(left)
        self._tell(
            Tally(
                done=finished,
                total=finished + len(left),
                seconds_left=None if seconds is None else seconds / self._means.workers,
                what=what,
                result=result,
            )
        )


def _by_settings(path: Path, scale_name: str) -> dict[str, Result]:
    """Results of the other experiments in the folder, by all that decided them."""
    return {
        digest(result.settings): result
        for file in sorted(path.parent.glob("*.jsonl"))
        if file != path
        for result in read_results(file)
        if result.scale == scale_name
    }


def run_cell(cell: Cell, place: Place) -> tuple[Outcome, float, Provenance]:
    """Compute a cell, here or in another process; seconds and source are of that process."""
    begin = time.perf_counter()
    found = cell.task.run(place)
    return found, time.perf_counter() - begin, provenance()
