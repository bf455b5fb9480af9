"""What tests of the GPU's benches share: a bench on the CPU at toy sizes."""

from collections.abc import Callable
from pathlib import Path

import torch

from retnet.bench.gpu.bench import Bench
from retnet.bench.gpu.device import Ceilings
from retnet.bench.session import Session
from retnet.bench.timing import Spread
from retnet.model.cuda_graph import WARM_UPS, Capture

CPU = torch.device("cpu")


def one(value: float) -> Spread:
    return Spread(value, 0.9 * value, 1.1 * value, 5)


def again(step: Callable[[], object]) -> Callable[[], object]:
    """As `cuda_capture`, but to replay is to call again."""
    for _ in range(WARM_UPS):
        step()
    return step


def make_bench(out: Path, capture: Capture | None = None) -> Bench:
    return Bench(
        session=Session(out, quick=True),
        device=CPU,
        backend="torch",
        capture=capture,
        ceilings=Ceilings(one(1.0), one(10.0)),
        versions={"triton": "none"},
    )
