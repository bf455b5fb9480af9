"""A session: one run of `retnet bench`, where its results go and whom it tells."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from retnet.bench.machine import provenance
from retnet.bench.peers import PeerMissing
from retnet.bench.record import Record, Recorder
from retnet.bench.timing import FULL, QUICK, QUICK_TURNS, SUITE, Turns

Tell = Callable[[str, int, int], None]
"""Called with what is measured next, the number of things measured, and of all."""


@runtime_checkable
class Case(Protocol):
    """What is measured."""

    @property
    def suite(self) -> bool:
        """Whether the suite of all benches measures it too."""
        ...


C = TypeVar("C", bound=Case)


class Session:
    """What every bench is given.

    Attributes:
        quick: toy sizes, to see that everything works.
        suite: one of all benches in a row, which leave out their longest cases.
        effort: how long to time each case.
        minutes: how long to use what is measured by using it; None for as long as usual.
        recorder: takes results.
        skipped: what was left out because a peer or a library is missing, and how to get it.
        pictures: files drawn.
        failed: cases that were not measured, and why.
    """

    def __init__(
        self,
        out: Path,
        *,
        quick: bool,
        suite: bool = False,
        minutes: float | None = None,
        progress: Tell | None = None,
    ) -> None:
        self.quick = quick
        self.suite = suite
        self.minutes = minutes
        self.effort = QUICK if quick else SUITE if suite else FULL
        self.recorder = Recorder(out, provenance(), quick=quick)
        self.skipped: list[str] = []
        self.failed: list[str] = []
        self.pictures: list[Path] = []
        self._progress = progress
        self._done = self._total = 0

    def choose(self, full: Mapping[str, C], quick: Mapping[str, C]) -> Mapping[str, C]:
        """The cases that this session measures; those of the suite have `suite = True`."""
        if self.quick:
            return quick
        return {name: case for name, case in full.items() if case.suite or not self.suite}

    def turns(self, full: Turns) -> Turns:
        """How long to measure in turns: so long, or with toy sizes as briefly as can be."""
        return QUICK_TURNS if self.quick else full

    def plan(self, total: int) -> None:
        """Say how many times `begin` will be called."""
        self._done, self._total = 0, total

    def begin(self, what: str) -> None:
        """Tell what is measured next."""
        if self._progress is not None:
            self._progress(what, self._done, self._total)
        self._done += 1

    def end(self) -> None:
        """Tell that all is measured."""
        if self._progress is not None:
            self._progress("done", self._total, self._total)

    def skip(self, why: PeerMissing | str) -> None:
        """Note, once, that something is missing."""
        if str(why) not in self.skipped:
            self.skipped.append(str(why))

    def draw(self, name: str, plot: Callable[[list[Record], Path], None]) -> None:
        """Draw a picture of the results, if any, beside the records; note it if that cannot be."""
        if not self.recorder.records:
            return
        picture = self.recorder.folder / name
        try:
            plot(self.recorder.records, picture)
        except ModuleNotFoundError:
            self.skip("no picture: matplotlib is missing; pip install 'retnet[plot]' brings it")
        except ValueError as error:  # its cases failed, while others' records are there
            self.skip(f"no picture: {error}")
        else:
            self.pictures.append(picture)

    def fail(self, what: str, error: Exception | str) -> None:
        """Note a case that has no record, for its gate or its process failed."""
        self.failed.append(f"{what}: {error}")
