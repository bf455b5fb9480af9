"""What every part of the suite is given, and how it runs: in order, within time, losing nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import torch

from retnet.bench.gpu.device import FULL, QUICK, Ceilings, free_memory
from retnet.bench.record import GateFailed
from retnet.bench.session import Session
from retnet.bench.timing import Effort
from retnet.model.cuda_graph import Capture
from retnet.types import Backend


class Job(NamedTuple):
    """Kernels that one process compiles: whose, and for which head sizes."""

    who: str
    D_k: int
    D_v: int


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a step is given.

    Attributes:
        session: takes results and what went wrong.
        device: that is measured.
        backend: of our retention.
        capture: how to record a CUDA graph; None where there are none.
        ceilings: the most that the device does.
        versions: what each record says besides the session's source.
        late: kernels that did not compile in time; whoever needs them is left out.
    """

    session: Session
    device: torch.device
    backend: Backend
    capture: Capture | None
    ceilings: Ceilings
    versions: dict[str, str]
    late: set[Job] = field(default_factory=set)

    @property
    def effort(self) -> Effort:
        """How long to time what is compared."""
        return QUICK if self.session.quick else FULL


class Step(NamedTuple):
    """A piece of the suite that is run or left out as a whole.

    Attributes:
        what: is measured, for people.
        run: measures and records it.
        seconds: that it may take; it does not begin with less left.
    """

    what: str
    run: Callable[[Bench], None]
    seconds: float


class Part(NamedTuple):
    """Steps of one kind.

    Attributes:
        steps: by what they are worth.
        reserve_s: seconds that earlier parts leave for it.
    """

    steps: Sequence[Step]
    reserve_s: float


class Clock:
    """How much of a run's time is left."""

    def __init__(self, limit_s: float, now: Callable[[], float] = perf_counter) -> None:
        self._now = now
        self._end = now() + limit_s

    def left(self) -> float:
        """Seconds until the end."""
        return self._end - self._now()


def run_parts(bench: Bench, parts: Sequence[Part], clock: Clock) -> None:
    """Run all steps, each within what is left of the time, whatever happens to the others."""
    for index, part in enumerate(parts):
        reserved = sum(later.reserve_s for later in parts[index + 1 :])
        for step in part.steps:
            bench.session.begin(step.what)
            if clock.left() - reserved < step.seconds:
                bench.session.skip(
                    f"no time left for {step.what}: run its part alone, `retnet bench gpu-...`; "
                    "what was compiled is kept"
                )
                continue
            run_step(bench, step)


def run_step(bench: Bench, step: Step) -> None:
    """Run one step; what it raises is noted."""
    try:
        step.run(bench)
    except GateFailed as error:
        bench.session.fail(step.what, error)
    except Exception as error:  # a driver's, a compiler's or a rival's own: the next must still run
        bench.session.fail(step.what, GateFailed(one_line(error)))
    finally:
        free_memory(bench.device)


def one_line(error: Exception) -> str:
    """An error's type and the first line of what it says; drivers and compilers say pages."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
