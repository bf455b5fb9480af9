"""Compile kernels before they are timed, for all head sizes at once, in processes beside this one.

Triton compiles a kernel for each head size on its first call, and flash-linear-attention then tries
about 160 variants of its own: minutes for one size, on one core. Every process here takes one size,
calls the kernel once on few tokens and ends; what it compiled stays in Triton's cache on disk,
where this process finds it. Variants are still tried here, on the tokens that are timed: what such
a process finds the fastest, beside others on the same GPU, is thrown away.
"""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch

from retnet.bench.gpu.bench import Bench, Job, Step
from retnet.bench.gpu.cases import HEADS, OpCase
from retnet.bench.gpu.gates import draw_inputs, ours, results
from retnet.bench.gpu.rivals import FLA, fla_retention
from retnet.bench.peers import PeerMissing
from retnet.bench.record import Gate
from retnet.bench.timing import Spread

BENCH = "gpu/compile"
LIMIT_SECONDS = 180.0
OURS = "retnet"
BATCHES = (1, 4)  # 1 is often a kernel of its own
TOKENS = 2048
ENVIRONMENT = {"FLA_CACHE_RESULTS": "0"}  # theirs: not to keep which variant was the fastest


def compile_step(cases: Sequence[OpCase]) -> Step:
    """Compile what these cases need; nothing is compiled without a GPU."""
    sizes = dict.fromkeys((case.D_k, case.D_v) for case in cases)
    jobs = [Job(who, *size) for size in sizes for who in (OURS, FLA)]
    return Step("compiling the kernels of all cases", lambda bench: _compile(bench, jobs), 0.0)


def _compile(bench: Bench, jobs: Sequence[Job]) -> None:
    if bench.device.type != "cuda":
        return
    try:
        fla_retention(bench.device)
    except PeerMissing as missing:
        bench.session.skip(missing)
        jobs = [job for job in jobs if job.who == OURS]
    gate = Gate(True, "none needed: what is compiled is judged where it is timed")
    for job, seconds in compile_all(jobs, LIMIT_SECONDS).items():
        if seconds == math.inf:
            bench.late.add(job)
        elif seconds is not None:  # one that failed says why where it is timed
            fields = {"by": job.who, "D_k": job.D_k, "D_v": job.D_v, **bench.versions}
            bench.session.recorder.add(BENCH, fields, {"cold_s": Spread.of([seconds])}, gate)


def compile_all(
    jobs: Sequence[Job], limit_s: float, command: Callable[[Job], Sequence[str]] | None = None
) -> dict[Job, float | None]:
    """Run a process for each job, all at once.

    Args:
        jobs: what to compile.
        limit_s: seconds after which those still at it are ended.
        command: of a job's process; None for this module's own.

    Returns:
        Seconds that each took; infinity for those that were ended, None for those that failed.
    """
    command = command or own_command
    begin = time.perf_counter()
    running = {
        job: subprocess.Popen(
            command(job),
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for job in jobs
    }
    seconds: dict[Job, float | None] = dict.fromkeys(jobs)
    try:
        while running and time.perf_counter() - begin < limit_s:
            for job, process in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    if process.returncode == 0:
                        seconds[job] = time.perf_counter() - begin
            time.sleep(0.05)
    finally:  # also when someone interrupts: they would go on with the GPU
        for job, process in running.items():
            process.kill()
            process.wait()
            seconds[job] = math.inf
    return seconds


def own_command(job: Job) -> Sequence[str]:
    """The words that start a process of this module for a job."""
    return (
        sys.executable,
        "-c",
        f"from {__name__} import report; report()",
        *map(str, job),
    )


def report() -> None:
    """Be such a process: compile the job in `sys.argv`."""
    who, D_k, D_v = sys.argv[1:]
    call_once(Job(who, int(D_k), int(D_v)), torch.device("cuda"), TOKENS)


def call_once(job: Job, device: torch.device, T: int) -> None:
    """Forward and backward of a job's kernel on few tokens.

    Raises:
        PeerMissing: the kernel is a rival's that is not there.
    """
    for B in BATCHES:
        inputs = draw_inputs(OpCase(D_k=job.D_k, D_v=job.D_v, T=T, B=B, H=HEADS), device)
        forward = ours(inputs, "triton") if job.who == OURS else fla_retention(device)[1]
        results(forward, inputs)
