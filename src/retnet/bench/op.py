"""The op alone: forward, and forward with backward, in each form, beside torchscale's.

Operations are counted from the matrix products of each form, a multiplication and an addition as
two, per token and head, with chunks of C tokens:

| form | forward | backward |
|---|---|---|
| chunkwise | 2 C (D_k + D_v) + 4 D_k D_v | twice that |
| parallel | 2 T (D_k + D_v) + 4 D_k D_v | 4 T (D_k + D_v) + 2 D_k D_v |
| recurrent | 5 D_k D_v | not measured |

The first term is pairs of tokens (scores, and scores times v), the second the state (into it, and
out of it). In the backward each product has two; only the parallel form's state has fewer, for
nothing flows into the first state or out of the last. torchscale's chunkwise form executes the
same products with its own C. Products above the diagonal count: they are executed. The scores that
our chunkwise backward computes again do not: they are no progress.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from retnet.bench.cases import OPS, QUICK_OPS, OpCase
from retnet.bench.gates import OpInputs, gate_finite, gate_op, op_inputs
from retnet.bench.machine import measure_ceilings
from retnet.bench.peers import PeerMissing, torchscale
from retnet.bench.record import Gate, GateFailed
from retnet.bench.session import Session
from retnet.bench.timing import Spread, alternate, milliseconds, rates, ratios
from retnet.ops import retention
from retnet.ops.retention.flops import product_flops
from retnet.ops.retention.torch_backend import default_chunk_size
from retnet.train import keep_freed_memory
from retnet.types import Form

BENCH = "op/retention"
OURS = "retnet"

Passes = Literal["fwd", "fwdbwd"]
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]

PASSES: tuple[Passes, ...] = ("fwd", "fwdbwd")


def bench_ops(session: Session) -> None:
    """Measure the machine's ceilings, then every case."""
    keep_freed_memory()  # as in training
    cases = session.choose(OPS, QUICK_OPS)
    session.plan(1 + len(cases))
    session.begin("ceilings of this machine")
    width, copy_mib = (256, 16) if session.quick else (2048, 512)
    ceilings = measure_ceilings(session.effort, width, copy_mib)
    session.recorder.add(
        "machine", {"width": width, "copy_mib": copy_mib}, ceilings, Gate(True, "none needed")
    )
    for name, case in cases.items():
        session.begin(f"op {name}")
        try:
            bench_op(case, session, ceilings[f"{case.dtype}/matmul_gflops"].median)
        except GateFailed as error:
            session.fail(f"op {name}", error)
    session.end()


def bench_op(case: OpCase, session: Session, ceiling_gflops: float) -> None:
    """Measure one case, if our forms are right.

    Raises:
        GateFailed: they are not, or torchscale's output is not finite.
    """
    inputs = op_inputs(case)
    gate = gate_op(inputs)
    gate.require()
    peer = _torchscale(case, inputs, session)
    ledger = _Ledger(session, case, ceiling_gflops)
    short = session.effort._replace(budget_s=session.effort.budget_s / 4)  # nobody races these
    for passes in PASSES:
        pair = {OURS: _call(_forward(inputs, "chunkwise"), inputs, passes)}
        if peer is not None:
            pair[peer.name] = _call(peer.forward, inputs, passes)
        seconds = alternate(pair, session.effort)
        ledger.add(OURS, "chunkwise", passes, seconds[OURS], gate)
        if peer is not None:
            theirs = seconds[peer.name]
            ratio = ratios(theirs, seconds[OURS])
            ledger.add(peer.name, "chunkwise", passes, theirs, peer.gate, ratio)
        for form in case.others:
            if (form, passes) != ("recurrent", "fwdbwd"):  # its backward keeps an S for each token
                calls = {OURS: _call(_forward(inputs, form), inputs, passes)}
                ledger.add(OURS, form, passes, alternate(calls, short)[OURS], gate)


def gflop(case: OpCase, form: Form, passes: Passes, chunk: int) -> float:
    """10^9 operations of one call; the module's table says how they are counted."""
    pairs, state = chunk * (case.D_k + case.D_v), case.D_k * case.D_v
    forward = {
        "chunkwise": product_flops(chunk, case.D_k, case.D_v),
        "parallel": product_flops(chunk, case.D_k, case.D_v),
        "recurrent": 5 * state,
    }[form]
    backward = {"chunkwise": 4 * pairs + 8 * state, "parallel": 4 * pairs + 2 * state}
    total = forward if passes == "fwd" else forward + backward[form]
    return 1e-9 * case.B * case.T * case.H * total


class _Peer(NamedTuple):
    name: str
    forward: Forward
    gate: Gate


def _torchscale(case: OpCase, inputs: OpInputs, session: Session) -> _Peer | None:
    try:
        forward = torchscale.chunkwise_retention(
            inputs.log_decay,
            key_width=case.D_k,
            value_width=case.D_v,
            chunk_size=case.peer_chunk,
            dtype=case.torch_dtype,
        )
        name = f"torchscale {torchscale.version()}"
    except PeerMissing as missing:
        session.skip(missing)
        return None
    gate = gate_finite({f"{name}'s output": forward(inputs.q, inputs.k, inputs.v)})
    gate.require()
    return _Peer(name, forward, gate)


def _forward(inputs: OpInputs, form: Form) -> Forward:
    return lambda q, k, v: retention(q, k, v, inputs.log_decay, form=form)[0]


def _call(forward: Forward, inputs: OpInputs, passes: Passes) -> Callable[[], object]:
    """What is timed: no gradient is asked for in `fwd`, those of q, k and v in `fwdbwd`."""
    q, k, v, d_o, _ = inputs
    if passes == "fwd":

        def call() -> object:
            with torch.inference_mode():
                return forward(q, k, v)

        return call
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]

    def call_both() -> object:
        o = forward(*leaves)
        return torch.autograd.grad(o, leaves, d_o.view(o.shape))  # torchscale's o is in chunks

    return call_both


class _Ledger(NamedTuple):
    """Records the times of one case."""

    session: Session
    case: OpCase
    ceiling_gflops: float

    def add(
        self,
        by: str,
        form: Form,
        passes: Passes,
        seconds: Sequence[float],
        gate: Gate,
        ratio: Spread | None = None,
    ) -> None:
        """Record a call's time, its operations per second, and their share of the ceiling."""
        case = self.case
        if form == "chunkwise":
            chunk = default_chunk_size(case.D_k, case.D_v) if by == OURS else case.peer_chunk
        else:
            chunk = case.T if form == "parallel" else 1
        chunk = min(chunk, case.T)
        work = gflop(case, form, passes, chunk)
        metrics = {
            f"{passes}_ms": milliseconds(seconds),
            f"{passes}_gflops": rates(work, seconds),
            f"{passes}_share_of_matmul": rates(work / self.ceiling_gflops, seconds),
        }
        if ratio is not None:
            metrics[f"{passes}_time_over_retnet"] = ratio
        fields = {**case.fields(), "by": by, "form": form, "backend": "torch", "chunk": chunk}
        self.session.recorder.add(BENCH, fields, metrics, gate)
