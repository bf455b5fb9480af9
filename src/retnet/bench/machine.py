"""The machine: what a result was measured on and with, its memory, and the most it can do."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from retnet.bench.timing import Effort, Spread, alternate, host_seconds, rates
from retnet.train.peak import square_product


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a result comes from.

    Attributes:
        device: the processor's model and its cores that we may use.
        threads: that torch uses.
        torch: its version.
        python: its version.
        commit: of this package's repository; `unknown` when it is not run from one.
        dirty: the package's files differ from that commit's.
    """

    device: str
    threads: int
    torch: str
    python: str
    commit: str
    dirty: bool


def provenance() -> Provenance:
    """Describe this process."""
    commit, dirty = _commit(Path(__file__).parents[1])
    return Provenance(
        device=_processor(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        commit=commit,
        dirty=dirty,
    )


def _processor() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only; a container may have fewer
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return f"{model}, {cores} core{'s' * (cores != 1)}"


def _commit(package: Path) -> tuple[str, bool]:
    """Commit and whether the package differs; results that a run appends are not the package."""
    # A virtual environment inside someone else's repository has a commit too, but not ours.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return "unknown", True
    commit = _git(package, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return "unknown", True
    return commit, _git(package, "status", "--porcelain", "--", ".") != ""


def _git(folder: Path, *words: str) -> str | None:
    """What git prints, or None where it is missing or refuses."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def resident_mib() -> float:
    """Memory that this process holds now, MiB; its peak where the system does not say."""
    return _status_mib("VmRSS") or _rusage_mib()


def peak_mib() -> float:
    """The most memory that this process has held, MiB.

    Linux is asked for VmHWM: there `ru_maxrss` survives exec, so that a small program started
    by a large one would report the large one's memory as its own.
    """
    return _status_mib("VmHWM") or _rusage_mib()


def _status_mib(field: str) -> float | None:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    return None


def _rusage_mib() -> float:
    import resource  # here: Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def measure_ceilings(effort: Effort, width: int, copy_mib: int) -> dict[str, Spread]:
    """The most that this machine does: what a figure is a share of.

    Args:
        effort: how long to measure.
        width: of the square matrices that are multiplied.
        copy_mib: size of the block that is copied; well above the caches.

    Returns:
        `matmul_gflops` of each dtype, as `float32/matmul_gflops` and `bfloat16/matmul_gflops`,
        10^9 operations per second, a multiplication and an addition counted as two;
        `copy_gb_per_s`, 10^9 bytes per second, read and written bytes both counted; and
        `read_gb_per_s` of a block of that size.
    """
    calls, amounts = {}, {}
    for dtype in ("float32", "bfloat16"):
        product = square_product(width, getattr(torch, dtype), torch.device("cpu"))
        calls[f"{dtype}/matmul_gflops"] = product.multiply
        amounts[f"{dtype}/matmul_gflops"] = 1e-9 * product.operations
    source = torch.ones(copy_mib << 18)  # zeros that nobody wrote are all one page
    target = torch.zeros_like(source)
    calls["copy_gb_per_s"] = lambda: target.copy_(source)
    amounts["copy_gb_per_s"] = 2e-9 * source.nbytes
    reads = Reads()
    reads.reserve(source.nbytes)
    calls["read_gb_per_s"] = reads.of(source.nbytes)
    amounts["read_gb_per_s"] = 1e-9 * source.nbytes
    seconds = alternate(calls, effort)
    return {name: rates(amounts[name], seconds[name]) for name in calls}


def products(dtype: str, width: int, seconds: float) -> tuple[Callable[[], None], float]:
    """A call that takes about so long, to stand beside what it is the ceiling of.

    Args:
        dtype: of the square matrices that are multiplied.
        width: of them.
        seconds: that a call takes, once this one has measured how many products that are.

    Returns:
        The call, and the operations of one, in 10^9.
    """
    product = square_product(width, getattr(torch, dtype), torch.device("cpu"))
    product.multiply()
    begin = perf_counter()
    product.multiply()
    count = max(round(seconds / (perf_counter() - begin)), 1)

    def call() -> None:
        for _ in range(count):
            product.multiply()

    return call, 1e-9 * count * product.operations


TRIALS = 5
"""Calls that decide which way of reading is quickest."""


class Reads:
    """Blocks to be read once, as a token reads its weights and its state.

    In the way of PyTorch's that is quickest for a block of the size on this machine: of two
    processors, one reads twice as fast for a sum as for a product with a vector, the other does
    not. The blocks are slices of one, so that many cost no more memory than the largest.
    """

    WIDTH = 1024

    def __init__(self) -> None:
        self._rows = torch.zeros(0, self.WIDTH)
        self._vector = torch.ones(self.WIDTH)

    def reserve(self, num_bytes: int) -> None:
        """Make room for the largest block, in bytes, before the calls are made."""
        count = self._count(num_bytes)
        if count > len(self._rows):
            self._rows = torch.ones(count, self.WIDTH)

    def of(self, num_bytes: int) -> Callable[[], object]:
        """A call that reads a block of so many bytes, rounded down to 4 KiB but for the first.

        Raises:
            ValueError: no room was made for so large a block.
        """
        count = self._count(num_bytes)
        if count > len(self._rows):
            raise ValueError(
                f"a block of {num_bytes} bytes is larger than the {self._rows.nbytes} bytes there "
                "are room for; reserve the largest first"
            )
        rows, out = self._rows[:count], torch.empty(count)
        flat = rows.view(-1)
        ways: tuple[Callable[[], object], ...] = (
            lambda: torch.mv(rows, self._vector, out=out),
            flat.sum,
            lambda: torch.dot(flat, flat),
        )
        return min(ways, key=_least_seconds)

    def _count(self, num_bytes: int) -> int:
        return max(num_bytes // (4 * self.WIDTH), 1)


def _least_seconds(call: Callable[[], object]) -> float:
    """Of a few calls after the first."""
    call()
    return min(host_seconds(call) for _ in range(TRIALS))
