"""An experiment: cells to run, found as their forerunners' results come, and what they show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from retnet.bench.table import Table
from retnet.reproduce.cell import Cell, Result
from retnet.reproduce.intervals import Claim
from retnet.reproduce.scales import Scale, scale
from retnet.reproduce.texts import Texts


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What an experiment is run with.

    Attributes:
        scale: sizes and budget.
        texts: ready; None for experiments that read none.
        models: to run, by their names; empty for all.
    """

    scale: Scale
    texts: Texts | None = None
    models: tuple[str, ...] = ()

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Those of the names that are asked for.

        Raises:
            ValueError: one is asked for that there is not.
        """
        for name in self.models:
            if name not in names:
                raise ValueError(f'no model "{name}"; choose from {", ".join(names)}')
        return [name for name in names if not self.models or name in self.models]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to do, given what is known.

    Attributes:
        cells: that can run, the most urgent first, those that have run among them.
        later: stand-ins for cells that depend on the results of others, to count and to time.
    """

    cells: Sequence[Cell]
    later: Sequence[Cell] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the results of an experiment show.

    Attributes:
        ours: our numbers, the first as the paper has it.
        papers: the paper's own, where it has any.
        claims: what it says, held against ours.
        remarks: what a reader should know besides, in sentences.
        draw: fills a figure of matplotlib, which need not be installed for the rest.
    """

    ours: Sequence[Table]
    papers: Sequence[Table]
    claims: Sequence[Claim]
    remarks: Sequence[str]
    draw: Callable[[Any], None]


@runtime_checkable
class Experiment(Protocol):
    """A table or a figure."""

    @property
    def name(self) -> str:
        """Of the command."""
        ...

    @property
    def title(self) -> str:
        """Of the page."""
        ...

    @property
    def about(self) -> str:
        """What is compared, in a paragraph."""
        ...

    @property
    def reads_texts(self) -> bool:
        """Whether it needs texts."""
        ...

    def plan(self, setup: Setup, done: Mapping[str, Result]) -> Plan:
        """The cells, given the results that there are, by the keys of their cells.

        Raises:
            ValueError: a model is asked for that the experiment does not have.
        """
        ...

    def report(self, results: Sequence[Result]) -> Report:
        """What results show; of them alone, so that a page can be made of a file of them."""
        ...


@runtime_checkable
class Sizes(Protocol):
    """An experiment that is not run with a scale's own models and texts."""

    def sized(self, scale: Scale) -> Scale:
        """What it takes in place of a scale."""
        ...


def scale_for(experiment: Experiment, name: str) -> Scale:
    """The scale of that name, as the experiment is run at it.

    Raises:
        ValueError: there is none of that name.
    """
    found = scale(name)
    return experiment.sized(found) if isinstance(experiment, Sizes) else found


def results_file(name: str, scale: str, folder: Path) -> Path:
    """Where the results of an experiment are; page and picture have the same stem."""
    return folder / f"{stem(name, scale)}.jsonl"


def stem(name: str, scale: str) -> str:
    """Pages of the scale `cpu`, which everybody can run, are called as the experiment."""
    return name if scale == "cpu" else f"{name}-{scale}"
