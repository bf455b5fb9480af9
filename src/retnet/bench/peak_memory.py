"""One competitor's work in a process of its own, to see the memory that it takes.

What one competitor has freed would hide what the next one takes, so the process in which they take
turns cannot tell.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retnet.bench import prefillers, trainees
from retnet.bench.cases import PrefillCase, TrainCase
from retnet.bench.machine import peak_mib, resident_mib
from retnet.bench.sizes import TINY, ModelSize


class WorkerFailed(RuntimeError):
    """The process of one competitor ended before its work did."""


class Apart(NamedTuple):
    """What a process of its own was seen to do.

    Attributes:
        start_mib: memory before the model was built: Python, and the libraries at work.
        peak_mib: the most it held.
        seconds: of each call.
        finite: whether all numbers that the last call gave are.
    """

    start_mib: float
    peak_mib: float
    seconds: list[float]
    finite: bool


WORK: dict[type, Callable[[str, Any], Callable[[], Tensor]]] = {
    TrainCase: lambda who, case: trainees.training_step(trainees.build(who, case), case),
    PrefillCase: lambda who, case: prefillers.reading(prefillers.build(who, case), case),
}
"""What is done in a case, from a competitor's name and the case to a call."""


def apart(who: str, case: TrainCase | PrefillCase, calls: int = 1) -> Apart:
    """Let `who` work alone in a new process, with as many threads as this one.

    Raises:
        WorkerFailed: the process did; what it said is on standard error.
    """
    words = [type(case).__name__, who, json.dumps(asdict(case))]
    numbers = [str(calls), str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import report; report()", *words, *numbers],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise WorkerFailed(
            f"{who} in a process of its own ended with status {done.returncode}; "
            "-9 is the system's answer to too little memory"
        )
    return Apart(*json.loads(done.stdout.splitlines()[-1]))


def report() -> None:
    """Be that other process: write one line of JSON for the competitor in `sys.argv`."""
    kind, who, text, calls, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    cls = next(cls for cls in WORK if cls.__name__ == kind)
    fields = json.loads(text)
    case = cls(**fields | {"size": ModelSize(**fields["size"])})
    WORK[cls](who, replace(case, T=64, size=TINY))()  # loads the libraries
    start = resident_mib()
    work = WORK[cls](who, case)
    seconds, result = [], torch.zeros(())
    for _ in range(int(calls)):
        begin = perf_counter()
        result = work()
        seconds.append(perf_counter() - begin)
    finite = bool(result.isfinite().all())
    sys.stdout.write(json.dumps(Apart(start, peak_mib(), seconds, finite)) + "\n")
