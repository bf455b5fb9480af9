"""`retnet bench gpu`: ops, training and decoding on a GPU in less than ten minutes, by worth."""

from collections.abc import Callable
from functools import partial

from retnet.bench.gpu.bench import Bench, Clock, run_parts
from retnet.bench.gpu.cases import LIMIT_SECONDS
from retnet.bench.gpu.decode import decode_part
from retnet.bench.gpu.decode_plot import plot_decoding
from retnet.bench.gpu.device import (
    FULL,
    QUICK,
    measure_device,
    pick_backend,
    pick_device,
    source_of,
    triton_version,
)
from retnet.bench.gpu.op_plot import plot_ops
from retnet.bench.gpu.ops import ops_part
from retnet.bench.gpu.train import train_part
from retnet.bench.record import Gate, Recorder
from retnet.bench.session import Session
from retnet.model.cuda_graph import cuda_capture

BENCH = "gpu/machine"
PARTS = {"ops": ops_part, "train": train_part, "decode": decode_part}
PLOTS = {
    "ops": ("gpu-ops.png", plot_ops),
    "decode": ("gpu-decode.png", plot_decoding),
}


def bench_gpu(session: Session, names: tuple[str, ...] = tuple(PARTS)) -> None:
    """Measure the device's ceilings, then these parts, in this order.

    Without a GPU toy sizes run on the CPU, Triton in its interpreter.

    Raises:
        ValueError: there is no GPU, and these are no toy sizes.
    """
    clock = Clock(LIMIT_SECONDS)
    device = pick_device(session.quick)
    parts = [PARTS[name](session.quick) for name in names]
    session.plan(1 + sum(len(part.steps) for part in parts))
    session.begin("ceilings of this device")
    # the GPU, where there is one, is what was measured, not the processor beside it
    session.recorder = Recorder(session.recorder.folder, source_of(device), quick=session.quick)
    width, copy_mib = (128, 4) if session.quick else (8192, 2048)
    ceilings = measure_device(device, QUICK if session.quick else FULL, width, copy_mib)
    versions = {"triton": triton_version()}
    session.recorder.add(
        BENCH,
        {"width": width, "copy_mib": copy_mib, **versions},
        ceilings._asdict(),
        Gate(True, "none needed"),
    )
    bench = Bench(
        session=session,
        device=device,
        backend=pick_backend(device),
        capture=cuda_capture if device.type == "cuda" else None,
        ceilings=ceilings,
        versions=versions,
    )
    run_parts(bench, parts, clock)
    _draw(session, names)
    session.end()


def _draw(session: Session, names: tuple[str, ...]) -> None:
    """Draw what was measured, if anything was."""
    measured = {record.bench for record in session.recorder.records}
    for name, (picture, plot) in PLOTS.items():
        if name in names and {"ops": "gpu/op", "decode": "gpu/decode"}[name] in measured:
            session.draw(picture, plot)


GPU_BENCHES: dict[str, Callable[[Session], None]] = {
    "gpu": bench_gpu,
    **{f"gpu-{name}": partial(bench_gpu, names=(name,)) for name in PARTS},
}
"""By name: all parts, or one alone."""
