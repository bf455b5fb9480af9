"""The whole training step: forward, loss, backward, AdamW; beside other people's decoders.

The matrix product takes turns too: the share of its rate is that of the same moment.
"""

from collections.abc import Callable
from typing import NamedTuple

from retnet.bench.cases import QUICK_TRAINS, TRAINS, TrainCase
from retnet.bench.gates import all_of, gate_decoder, gate_finite, gate_size
from retnet.bench.machine import products
from retnet.bench.ours import OURS
from retnet.bench.peak_memory import WorkerFailed, apart
from retnet.bench.peers import PeerMissing
from retnet.bench.peers.roles import Trainee, num_parameters
from retnet.bench.record import Gate, GateFailed
from retnet.bench.session import Session
from retnet.bench.timing import Effort, Spread, alternate, milliseconds, rates, ratios
from retnet.bench.train_plot import plot_train
from retnet.bench.trainees import build, training_step
from retnet.model import Decoder
from retnet.train.flops import training_flops_per_token

BENCH = "train/step"
PRODUCT = "matrix product"


def bench_train(session: Session) -> None:
    """Measure every case, and draw `train.png` beside the records."""
    cases = session.choose(TRAINS, QUICK_TRAINS)
    session.plan(len(cases))
    for name, case in cases.items():
        try:
            bench_train_step(name, case, session)
        except (GateFailed, WorkerFailed) as error:
            session.fail(f"training step {name}", error)
    session.draw("train.png", plot_train)
    session.end()


def bench_train_step(name: str, case: TrainCase, session: Session) -> None:
    """Measure one case, if our decoder's forms agree and a step leaves all numbers finite.

    Raises:
        GateFailed: they do not, it does not, or the decoders differ in size.
    """
    session.begin(f"training step {name}, {1 + len(case.rivals)} in turns")
    width, seconds = (64, 0.001) if session.quick else (2048, 0.3)
    multiply, gflop = products(case.precision, width, seconds)
    everyone = _turns(case, session, multiply)
    for runner in everyone:
        if not runner.gate.passed:
            session.fail(f"training step {name}, {runner.by}", runner.gate.why)
            continue
        times, gate, metrics = runner.times, runner.gate, {}
        if case.apart:  # one that had no rivals is timed there
            alone = apart(runner.who, case, calls=1 if case.rivals else 1 + case.rounds)
            gate = all_of([gate, Gate(alone.finite, f"{runner.by}: numbers are not finite")])
            times = times or alone.seconds[1:]
            metrics["peak_mib"] = Spread.of([alone.peak_mib])
            metrics["peak_over_start_mib"] = Spread.of([alone.peak_mib - alone.start_mib])
        metrics["step_ms"] = milliseconds(times)
        metrics["tokens_per_s"] = rates(float(case.B * case.T), times)
        if runner.who != OURS:
            metrics["step_time_over_retnet"] = ratios(times, everyone[0].times)
        if runner.gflop is not None:
            peaks = [gflop / s for s in runner.product_times]
            shares = [runner.gflop / s / p for s, p in zip(times, peaks, strict=False)]
            metrics["share_of_matmul"] = Spread.of(shares)
        fields = {
            "model": case.size.name,
            "B": case.B,
            "T": case.T,
            "precision": case.precision,
            "parameters": runner.parameters,
            "by": runner.by,
        }
        session.recorder.add(BENCH, fields, metrics, gate)


class _Runner(NamedTuple):
    """What is left of a competitor when the turns are over."""

    who: str
    by: str
    parameters: int
    gflop: float | None  # of a step; None for those whose formula is not ours to know
    gate: Gate
    times: list[float]
    product_times: list[float]


def _turns(case: TrainCase, session: Session, multiply: Callable[[], None]) -> list[_Runner]:
    """Let all who are installed take turns, the matrix product among them; ours is the first."""
    trainees = {OURS: build(OURS, case)}
    for who in case.rivals:
        try:
            trainees[who] = build(who, case)
        except PeerMissing as missing:
            session.skip(missing)
    sizes = {who: num_parameters(it.model) for who, it in trainees.items()}
    gate_size(sizes[OURS], sizes).require()
    steps: dict[str, Callable[[], object]] = {}
    gates: dict[str, Gate] = {}
    for who, it in trainees.items():
        if isinstance(it.model, Decoder):
            gate_decoder(it.model, case.precision).require()
        if case.rivals:
            step = steps[who] = training_step(it, case)
            loss = {f"{it.by}: loss": step()}  # a step that the clock need not see
            gates[who] = gate_finite(
                loss | {f"{it.by}: {n}": p for n, p in it.model.named_parameters()}
            )
    effort = Effort(warmup=0, min_rounds=case.rounds, budget_s=0.0)
    times = alternate({**steps, PRODUCT: multiply}, effort)
    return [
        _Runner(
            who,
            it.by,
            sizes[who],
            _gflop(it, case),
            gates.get(who, Gate(True, "forms agree")),
            times.get(who, []),
            times[PRODUCT],
        )
        for who, it in trainees.items()
    ]


def _gflop(trainee: Trainee, case: TrainCase) -> float | None:
    """10^9 operations of a step, of our own decoder."""
    if not isinstance(trainee.model, Decoder):
        return None
    return 1e-9 * case.B * case.T * training_flops_per_token(trainee.model, case.T)
