"""`retnet reproduce NAME`: prepare texts, run the cells with a bar, write the page."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from retnet.reproduce.cell import Place, Result
from retnet.reproduce.executors import cluster_size
from retnet.reproduce.experiment import Experiment, Setup, results_file, scale_for
from retnet.reproduce.experiments import EXPERIMENTS
from retnet.reproduce.experiments.benches import BenchExperiment
from retnet.reproduce.intervals import verdict
from retnet.reproduce.page import write_page
from retnet.reproduce.results import read_results
from retnet.reproduce.runner import Means, Pace, Tally, Tell, measured_pace, run_experiment
from retnet.reproduce.scales import SMOKE, Scale, scale
from retnet.reproduce.texts import load_texts, prepare_texts
from retnet.reproduce.training import TUNED_BY, rescaled
from retnet.train.display import clock_time


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a user asks for.

    Attributes:
        name: of the experiment.
        scale: of SCALES.
        data: TOML file of texts; None takes Python's own library.
        models: to run; empty for all.
        tokens: to learn from, in place of the scale's; 0 for those.
        seeds: likewise.
        rates: learning rates to choose from, in place of the scale's; empty for those.
        minutes: after which no further cell begins; 0 for no end.
        workers: processes to spread the cells over; None: this one, or all of the cluster's.
        cluster: address of a scheduler of Dask, whose workers see the same folders.
        results: folder of results and pages.
        work: folder for what is made on the way.
        only: `run` everything, `estimate` how long it takes, or write the `page` of what there is.
    """

    name: str
    scale: str = "cpu"
    data: Path | None = None
    models: tuple[str, ...] = ()
    tokens: int = 0
    seeds: int = 0
    rates: tuple[float, ...] = ()
    minutes: float = 0.0
    workers: int | None = None
    cluster: str = ""
    results: Path = Path("runs/results")
    work: Path = Path("runs/reproduce")
    only: str = "run"

    def __post_init__(self) -> None:
        for name in ("tokens", "seeds", "minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be 0 or more; raise it")
        if any(rate <= 0 for rate in self.rates) or len(set(self.rates)) < len(self.rates):
            raise ValueError(f"rates {self.rates} must be positive and differ from each other")
        if self.cluster and self.workers is not None:
            raise ValueError(
                f"a cluster has workers of its own, and {self.workers} more are asked for; leave "
                "--workers out"
            )

    def sized(self, experiment: Experiment) -> Scale:
        """The experiment's scale with the user's budget.

        Raises:
            ValueError: the experiment reads no text, and text or tokens are given, or tunes no
                learning rates, and some are.
        """
        for name in ("data", "tokens"):
            value = getattr(self, name)
            if value and not experiment.reads_texts:
                raise ValueError(
                    f"{experiment.name} reads no text, so --{name} ({value}) would do nothing; "
                    "leave it out"
                )
        if self.rates and isinstance(experiment, BenchExperiment):
            raise ValueError(
                f"{experiment.name} trains nothing to its end, so --rates would do nothing; leave "
                "it out"
            )
        sized = scale_for(experiment, self.scale)
        if self.tokens:
            steps = max(self.tokens // sized.train.tokens_per_step, 1)
            sized = replace(sized, train=rescaled(sized.train, steps))
        return replace(sized, seeds=self.seeds or sized.seeds, rates=self.rates or sized.rates)


def reproduce(wish: Wish, console: Console | None = None) -> list[Result]:
    """Run an experiment, or what is left of it, and write its page.

    Raises:
        ValueError: there is no such experiment, scale, model or text, or a setting is outside its
            range.
        KeyboardInterrupt: it was asked to stop; what is done is kept.
    """
    console = console or Console()
    experiment = find_experiment(wish.name)
    path = results_file(wish.name, wish.scale, wish.results)
    if wish.only == "page":
        scale(wish.scale)
        _finish(experiment, wish, read_results(path), console)
        return read_results(path)
    place = Place(work=wish.work / wish.scale, root=Path.cwd())
    setup = _setup(experiment, wish, place, console)
    means = Means(
        place=place,
        results=path,
        workers=cluster_size(wish.cluster) if wish.cluster else wish.workers or 1,
        cluster=wish.cluster,
        minutes=wish.minutes or math.inf,
    )
    pace = _pace(experiment, setup, means, console)
    if wish.only == "estimate":
        return read_results(path)
    with _shown(console) as tell:
        results = run_experiment(experiment, setup, means, pace=pace, tell=tell)
    _finish(experiment, wish, results, console)
    return results


def find_experiment(name: str) -> Experiment:
    """An experiment by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in EXPERIMENTS:
        raise ValueError(
            f'"{name}" is no experiment; choose one of {", ".join((*EXPERIMENTS, "positions"))}'
        )
    return EXPERIMENTS[name]


def _setup(experiment: Experiment, wish: Wish, place: Place, console: Console) -> Setup:
    sized = wish.sized(experiment)
    texts = None
    if experiment.reads_texts:
        config = None if wish.data is None else load_texts(wish.data)
        with console.status("reading texts"):
            texts = prepare_texts(config, sized.amounts, place)
        _say(
            console,
            f"{texts.name}: {texts.num_tokens:,} tokens to learn from; tests: "
            + ", ".join(f"{text.name} ({text.num_tokens:,} tokens)" for text in texts.tests),
        )
    return Setup(scale=sized, texts=texts, models=wish.models)


def _pace(experiment: Experiment, setup: Setup, means: Means, console: Console) -> Pace:
    """What is known of times; above the smallest scale, measured and told."""
    if setup.scale.name == SMOKE:
        return Pace({})
    with console.status("measuring speed") as status:
        pace = measured_pace(
            experiment, setup, means, lambda what: status.update(f"measuring speed: {what}")
        )
    done = {result.key: result for result in read_results(means.results)}
    plan = experiment.plan(setup, done)
    left = [cell for cell in (*plan.cells, *plan.later) if cell.key not in done]
    seconds = (pace.seconds(left) or 0.0) / means.workers
    _say(
        console,
        f"{len(left)} cells to run, about {clock_time(seconds)} with {means.workers} worker"
        f"{'s' * (means.workers != 1)} at the speed of this moment",
    )
    return pace


@contextmanager
def _shown(console: Console) -> Iterator[Tell]:
    """A bar on a terminal, a line for each cell that is done."""
    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)

        def tell(tally: Tally) -> None:
            left = "" if tally.seconds_left is None else f", {clock_time(tally.seconds_left)} left"
            bar.update(
                task, completed=tally.done, total=tally.total, description=f"{tally.what}{left}"
            )
            if tally.result is not None:
                loss = tally.result.metrics.get(TUNED_BY)
                found = "" if loss is None else f": validation loss {loss:.3f}"
                _say(
                    console,
                    f"{tally.done}/{tally.total} {tally.what}{found}, "
                    f"{tally.result.seconds:.1f} s{left}",
                )

        yield tell


def _finish(experiment: Experiment, wish: Wish, results: list[Result], console: Console) -> None:
    if not results:
        _say(console, "no cell has a result yet, so there is no page")
        return
    report = experiment.report(results)
    for table in report.ours:
        console.print(table.rich())
    _say(console, verdict(report.claims).replace("**", ""))
    try:
        page = write_page(experiment, wish.scale, wish.results)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the page's picture needs matplotlib ({error}); pip install 'retnet[plot]' brings it"
        ) from None
    _say(console, f"page: {page}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
