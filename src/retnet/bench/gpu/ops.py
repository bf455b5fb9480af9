"""Retention alone on a GPU: ours, flash-linear-attention, and attention, by turns."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from retnet.bench.gates import OpInputs, gate_finite
from retnet.bench.gpu.bench import Bench, Job, Part, Step, one_line
from retnet.bench.gpu.cases import OPS, QUICK_OPS, OpCase
from retnet.bench.gpu.compiling import compile_step
from retnet.bench.gpu.device import Call, first_seconds, take_turns
from retnet.bench.gpu.gates import ROUNDING, agree, draw_inputs, gate_short, ours, results
from retnet.bench.gpu.rivals import FLA, Forward, attention_rival, fla_retention
from retnet.bench.gpu.work import PASSES, Passes, Work, attention_work, retention_work
from retnet.bench.peers import PeerMissing
from retnet.bench.record import Gate, GateFailed
from retnet.bench.timing import Spread, milliseconds, rates, ratios
from retnet.model.cuda_graph import Capture

BENCH = "gpu/op"
OURS = "retnet"
ATTENTIONS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)


class Contender(NamedTuple):
    """Who takes part in a case.

    Attributes:
        name: with its version.
        forward: its op.
        inputs: what it is called on.
        gate: that it passed.
        first_s: seconds of its first forward and backward pass, compiling and tuning included.
        work: of a call.
    """

    name: str
    forward: Forward
    inputs: OpInputs
    gate: Gate
    first_s: float
    work: Callable[[OpCase, Passes], Work]


def ops_part(quick: bool) -> Part:
    """Compile, then every case."""
    cases = QUICK_OPS if quick else OPS
    steps = [Step(f"op {case.name}", _run(case), 0.0 if quick else 20.0) for case in cases]
    return Part([compile_step(cases), *steps], 0.0)


def _run(case: OpCase) -> Callable[[Bench], None]:
    return lambda bench: bench_op(bench, case)


def bench_op(bench: Bench, case: OpCase) -> None:
    """Measure one case, if ours is right.

    Raises:
        GateFailed: it is not. A rival that computes something else is noted and left out.
    """
    if _is_late(bench, OURS, case):
        raise GateFailed("our kernels for these heads did not compile in time")
    inputs = draw_inputs(case, bench.device)
    contenders = [_ours(bench, inputs), *_rivals(bench, case, inputs)]
    for passes in PASSES:
        calls = {(one.name, "eager"): _call(one, passes) for one in contenders}
        if case.graph and bench.capture is not None:
            calls |= _graphs(bench, bench.capture, contenders, passes)
        named = {", ".join(key): call for key, call in calls.items()}
        times = take_turns(named, bench.device, bench.effort)
        for by, launch in calls:
            contender = next(one for one in contenders if one.name == by)
            metrics = _metrics(bench, case, contender, passes, times[f"{by}, {launch}"])
            if by != OURS:
                our_times = times.get(f"{OURS}, {launch}")
                if our_times is not None:
                    over = ratios(times[f"{by}, {launch}"], our_times)
                    metrics[f"{passes}_time_over_retnet"] = over
            fields = {**case.fields(), "by": by, "launch": launch, **bench.versions}
            if by == OURS:
                fields["backend"] = bench.backend
            bench.session.recorder.add(BENCH, fields, metrics, contender.gate)


def _metrics(
    bench: Bench, case: OpCase, contender: Contender, passes: Passes, seconds: Sequence[float]
) -> dict[str, Spread]:
    work = contender.work(case, passes)
    copy, matmul = bench.ceilings.copy_gb_per_s.median, bench.ceilings.matmul_tflops.median
    metrics = {
        f"{passes}_ms": milliseconds(seconds),
        f"{passes}_share_of_copy": rates(1e-9 * work.least_bytes / copy, seconds),
        f"{passes}_share_of_matmul": rates(1e-12 * work.operations / matmul, seconds),
    }
    if passes == "fwdbwd":
        metrics["first_call_s"] = Spread.of([contender.first_s])
    return metrics


def _ours(bench: Bench, inputs: OpInputs) -> Contender:
    """Ours, right at a few hundred tokens and at all of them.

    Raises:
        GateFailed: it is not.
    """
    forward = ours(inputs, bench.backend)
    gate_short(inputs, bench.backend).require()
    got, seconds = _timed_results(bench, forward, inputs)
    gate = agree(got, results(ours(inputs, "torch"), inputs), "the torch backend")
    gate.require()
    return Contender(OURS, forward, inputs, gate, seconds, retention_work)


def _rivals(bench: Bench, case: OpCase, inputs: OpInputs) -> list[Contender]:
    """Those that are installed, run on this device and compute what they should."""
    rivals = []
    try:
        name, forward = fla_retention(bench.device)
    except PeerMissing as missing:
        bench.session.skip(missing)
    else:
        rivals.append(_retention_rival(bench, case, name, forward, inputs))
    for backend in ATTENTIONS:
        rival = attention_rival(backend, inputs)
        try:
            got, seconds = _timed_results(bench, rival.forward, rival.inputs)
        except RuntimeError as error:  # this kernel does not do this shape or this device
            bench.session.skip(f"{rival.name} was not measured: {one_line(error)}")
            continue
        gate = gate_finite(got)
        gate.require()
        rivals.append(Contender(*rival, gate, seconds, attention_work))
    return [rival for rival in rivals if rival is not None]


def _retention_rival(
    bench: Bench, case: OpCase, name: str, forward: Forward, inputs: OpInputs
) -> Contender | None:
    """Someone else's retention, judged by ours; None where it fails."""
    if _is_late(bench, FLA, case):
        bench.session.skip(f"{name} did not compile in time for D_k/D_v {case.D_k}/{case.D_v}")
        return None
    try:
        got, seconds = _timed_results(bench, forward, inputs)
    except Exception as error:  # its compiler's own kinds; ours must be measured all the same
        bench.session.skip(f"{name} failed at {case.name}: {one_line(error)}")
        return None
    gate = agree(got, results(ours(inputs, bench.backend), inputs), "our kernel")
    if not gate.passed:
        bench.session.fail(f"{name} at {case.name}", GateFailed(gate.why))
        return None
    return Contender(name, forward, inputs, gate, seconds, retention_work)


def _is_late(bench: Bench, who: str, case: OpCase) -> bool:
    return Job(who, case.D_k, case.D_v) in bench.late


def _timed_results(
    bench: Bench, forward: Forward, inputs: OpInputs
) -> tuple[dict[str, Tensor], float]:
    """Output and gradients of a first call, and its seconds."""
    got: dict[str, Tensor] = {}
    seconds = first_seconds(lambda: got.update(results(forward, inputs)), bench.device)
    return got, seconds


def _graphs(
    bench: Bench, capture: Capture, contenders: Sequence[Contender], passes: Passes
) -> dict[tuple[str, str], Call]:
    """Each contender's call as a CUDA graph, where it can be recorded."""
    graphs: dict[tuple[str, str], Call] = {}
    for one in contenders:
        call = _call(one, passes)
        kept: dict[str, Tensor] = {}

        def step(call: Callable[[], Tensor] = call, kept: dict[str, Tensor] = kept) -> None:
            kept["result"] = call()

        try:
            replay = capture(step)
        except RuntimeError as error:
            bench.session.skip(f"{one.name} was not recorded as a CUDA graph: {one_line(error)}")
            continue
        replay()
        gate = agree(kept, {"result": call()}, f"the eager {one.name}", ROUNDING)
        gate.require()
        graphs[one.name, "graph"] = replay
    return graphs


def _call(one: Contender, passes: Passes) -> Callable[[], Tensor]:
    """What is timed: no gradient is asked for in `fwd`, those of q, k and v in `fwdbwd`."""
    q, k, v, d_o, _ = one.inputs
    if passes == "fwd":

        def call() -> Tensor:
            with torch.inference_mode():
                return one.forward(q, k, v)

        return call
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]

    def call_both() -> Tensor:
        return torch.autograd.grad(one.forward(*leaves), leaves, d_o)[1]

    return call_both
