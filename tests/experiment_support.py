"""An experiment of sums that takes no time, and what it is run with; for the runner's tests."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retnet.bench.table import Table
from retnet.reproduce.cell import Cell, Outcome, Place, Result
from retnet.reproduce.experiment import Plan, Report, Setup
from retnet.reproduce.intervals import Claim, difference
from retnet.reproduce.runner import Means
from retnet.reproduce.scales import scale
from retnet.reproduce.sweep import runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Sum:
    """Writes its name into a folder, and adds; with `die`, the first time it kills its process.

    Attributes:
        model, rate, seed: of the cell.
        terms_of: what all share.
        die: whether to.
        meet: whether to wait until another cell has begun, in another process.
    """

    model: str
    rate: float
    seed: int
    terms_of: str = "text"
    die: bool = False
    meet: bool = False
    cost: float = 1.0
    kind: str = "sum"

    def settings(self) -> dict[str, Any]:
        return {"model": self.model, "rate": self.rate, "seed": self.seed}

    def terms(self) -> dict[str, Any]:
        return {"text": self.terms_of}

    def seconds(self, place: Place) -> float:
        assert place.work.exists()
        return 2.0

    def run(self, place: Place) -> Outcome:
        begun = place.work / f"{self.model} {self.rate} {self.seed} {os.getpid()}"
        begun.touch()
        if self.die and not (place.work / "died").exists():
            (place.work / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while self.meet and len({name.split()[-1] for name in os.listdir(place.work)}) < 2:
            time.sleep(0.01)  # the test's time limit ends it
        return Outcome(
            {"valid_loss": abs(self.rate - 2.0) + len(self.model), "loss": float(self.seed)}
        )


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Two models, two learning rates, then a second seed of the better one."""

    models: tuple[str, ...] = ("a", "bb")
    terms_of: str = "text"
    die: bool = False
    meet: bool = False
    name: str = "sums"
    title: str = "Sums"
    about: str = "Nothing."
    reads_texts: bool = False

    def cell(self, model: str, rate: float, seed: int) -> Cell:
        task = Sum(
            model=model,
            rate=rate,
            seed=seed,
            terms_of=self.terms_of,
            die=self.die and model == "bb",
            meet=self.meet,
        )
        return Cell(labels={"model": model, "learning_rate": rate, "seed": seed}, task=task)

    def plan(self, setup: Setup, done: Mapping[str, Result]) -> Plan:
        cells, later = [], []
        for model in setup.chosen(self.models):
            tuning = [self.cell(model, rate, 0) for rate in (1.0, 2.0)]
            cells += tuning
            found = [done[cell.key] for cell in tuning if cell.key in done]
            seeds = [self.cell(model, 2.0, seed) for seed in range(1, setup.scale.seeds)]
            (cells if len(found) == 2 else later).extend(seeds)
        return Plan(cells=cells, later=later)

    def report(self, results: Sequence[Result]) -> Report:
        found = runs(results)
        rows = [(name, f"{run.rate}", str(sorted(run.results))) for name, run in found.items()]
        gap = None
        if len(found) == 2:
            gap = difference(found["bb"].values("valid_loss"), found["a"].values("valid_loss"))
        return Report(
            ours=[Table("Sums", ("model", "rate", "seeds"), rows, "Of nothing.")],
            papers=[Table("Theirs", ("model", "sum"), [("a", "1")], "arXiv.")],
            claims=[Claim(says="bb is longer", gap=gap, unit="letters")],
            remarks=["A remark."],
            draw=_draw,
        )


def _draw(figure: "Figure") -> None:
    figure.subplots().plot([1, 2], [3, 4])


def setup(*models: str) -> Setup:
    return Setup(scale=replace(scale("smoke"), seeds=2), models=models)


def means(folder: Path, **options: Any) -> Means:
    work = folder / "work"
    work.mkdir(exist_ok=True)
    return Means(
        place=Place(work=work, root=folder), results=folder / "results" / "sums.jsonl", **options
    )
