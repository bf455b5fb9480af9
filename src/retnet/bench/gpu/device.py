"""The device that is measured: which it is, its clock, its memory, and the most that it can do."""

import gc
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil
from typing import NamedTuple

import torch

from retnet.bench.machine import Provenance, peak_mib, provenance
from retnet.bench.timing import Effort, Spread, alternate, host_seconds, rates
from retnet.ops.retention.backends import HAVE_TRITON
from retnet.train.peak import square_product
from retnet.types import Backend

Call = Callable[[], object]

BLOCK_SECONDS = 0.02  # of calls that are timed together: a launch takes microseconds
FULL = Effort(warmup=1, min_rounds=5, budget_s=0.4)
QUICK = Effort(warmup=0, min_rounds=2, budget_s=0.0)


class Ceilings(NamedTuple):
    """The most that the device does.

    Attributes:
        matmul_tflops: 10^12 operations per second of a bfloat16 matrix product, a multiplication
            and an addition counted as two.
        copy_gb_per_s: 10^9 bytes per second, read and written bytes both counted.
    """

    matmul_tflops: Spread
    copy_gb_per_s: Spread


def pick_device(quick: bool) -> torch.device:
    """The GPU; toy sizes also run without one.

    Raises:
        ValueError: there is no GPU, and these are no toy sizes.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if quick:
        return torch.device("cpu")
    raise ValueError(
        "this bench measures a CUDA device and torch sees none; run it on a machine that has one, "
        "or add --quick to see at toy sizes on the CPU that everything works"
    )


def pick_backend(device: torch.device) -> Backend:
    """Of our retention: Triton, without a GPU in its interpreter, or torch where it is missing.

    Triton must not be imported before: it then decides who runs its kernels.
    """
    if device.type != "cuda":
        if not HAVE_TRITON:
            return "torch"
        os.environ.setdefault("TRITON_INTERPRET", "1")
    return "triton"


def source_of(device: torch.device) -> Provenance:
    """Describe this process; the device is the GPU, not the processor that feeds it."""
    here = provenance()
    if device.type != "cuda":
        return here
    gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    return replace(here, device=f"{torch.cuda.get_device_name(device)}, {gib:.0f} GiB")


def triton_version() -> str:
    """Version of Triton, or `none`."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock_of(device: torch.device) -> Callable[[Call], float]:
    """What times a call, in seconds: between two events on a GPU, by the host's clock elsewhere."""
    if device.type != "cuda":
        return host_seconds
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(call: Call) -> float:
        begin.record()
        call()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end)

    return seconds


def first_seconds(call: Call, device: torch.device) -> float:
    """Seconds of a first call by the host's clock, with all that compiles or tunes itself in it."""

    def done() -> None:
        call()
        synchronize(device)

    return host_seconds(done)


def take_turns(
    calls: Mapping[str, Call], device: torch.device, effort: Effort
) -> dict[str, list[float]]:
    """Seconds per call of each competitor, blocks of calls in the order A B A B ...

    A block is as many calls, one right after the other, as take 20 ms: what is timed is the longer
    of what the device computes and what the host takes to launch it. At toy sizes it is one call.
    """
    clock = clock_of(device)
    length = BLOCK_SECONDS if effort.budget_s > 0 else 0.0
    counts = {name: max(1, ceil(length / max(clock(call), 1e-6))) for name, call in calls.items()}
    blocks = {name: _repeated(call, counts[name]) for name, call in calls.items()}
    seconds = alternate(blocks, effort, clock)
    return {name: [s / counts[name] for s in times] for name, times in seconds.items()}


def _repeated(call: Call, count: int) -> Call:
    def block() -> None:
        for _ in range(count):
            call()

    return block


def free_memory(device: torch.device) -> None:
    """Give back what no tensor holds any more, so that a case does not fail for the one before."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def watch_memory(device: torch.device) -> Callable[[], float]:
    """Begin to watch the most memory that tensors hold; what is returned tells it, in GiB.

    On the CPU it is the most that the process has held since it began.
    """
    if device.type != "cuda":
        return lambda: peak_mib() / 1024
    torch.cuda.reset_peak_memory_stats(device)
    return lambda: torch.cuda.max_memory_allocated(device) / 2**30


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error is that or came of it: a recording that breaks off has its own."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error is not None


def measure_device(device: torch.device, effort: Effort, width: int, copy_mib: int) -> Ceilings:
    """Measure a matrix product of `width` x `width`, and a copy of `copy_mib` MiB."""
    product = square_product(width, torch.bfloat16, device)
    given = torch.ones(copy_mib << 18, device=device)
    taken = torch.empty_like(given)
    calls = {"matmul": product.multiply, "copy": lambda: taken.copy_(given)}
    for call in calls.values():
        first_seconds(call, device)
    seconds = take_turns(calls, device, effort)
    return Ceilings(
        rates(1e-12 * product.operations, seconds["matmul"]),
        rates(2e-9 * given.nbytes, seconds["copy"]),
    )
