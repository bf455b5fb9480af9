"""Peak memory of training steps, each competitor in a process of its own.

Memory that one competitor has freed would hide what the next one takes, so the timing process
cannot tell.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from typing import NamedTuple

import torch

from retnet.bench.cases import ModelSize, TrainCase
from retnet.bench.machine import peak_mib, resident_mib
from retnet.bench.trainees import build, training_step

STEPS = 2  # the second also holds the optimizer's state


class Peak(NamedTuple):
    """Memory of a process, MiB.

    Attributes:
        start_mib: before the model was built: Python and the libraries.
        peak_mib: the most it held.
    """

    start_mib: float
    peak_mib: float


def peak_of(who: str, case: TrainCase) -> Peak:
    """Take a few steps of `who` in a new process, with as many threads as this one.

    Raises:
        subprocess.CalledProcessError: the process failed; what it said is on standard error.
    """
    words = [who, json.dumps(asdict(case)), str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import report; report()", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Peak(*json.loads(done.stdout.splitlines()[-1]))


def report() -> None:
    """Be that other process: write one line of JSON for the competitor in `sys.argv`."""
    who, text, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    fields = json.loads(text)
    case = TrainCase(**fields | {"size": ModelSize(**fields["size"])})
    start = resident_mib()
    step = training_step(build(who, case), case)
    for _ in range(STEPS):
        step()
    sys.stdout.write(json.dumps(Peak(start, peak_mib())) + "\n")
