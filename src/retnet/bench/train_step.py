"""The whole training step: forward, loss, backward, AdamW; beside torchscale's decoder."""

from dataclasses import asdict

from torch import nn

from retnet.bench.cases import QUICK_TRAINS, TRAINS, TrainCase
from retnet.bench.gates import gate_decoder, gate_finite
from retnet.bench.peak_memory import peak_of
from retnet.bench.peers import PeerMissing, torchscale_version
from retnet.bench.record import Gate, GateFailed
from retnet.bench.session import Session
from retnet.bench.timing import Spread, alternate, milliseconds, rates, ratios
from retnet.bench.trainees import OURS, TORCHSCALE, build, training_step
from retnet.model import Decoder

BENCH = "train_step"


def bench_train(session: Session) -> None:
    """Measure every case."""
    cases = QUICK_TRAINS if session.quick else TRAINS
    session.plan(len(cases))
    for name, case in cases.items():
        session.begin(f"training step {name}")
        try:
            bench_train_step(case, session)
        except GateFailed as error:
            session.fail(f"training step {name}", error)
    session.end()


def bench_train_step(case: TrainCase, session: Session) -> None:
    """Measure one case, if our decoder's forms agree and one step leaves numbers finite.

    Raises:
        GateFailed: they do not, it does not, or the decoders differ in size.
    """
    models, names = {OURS: build(OURS, case)}, {OURS: OURS}
    try:
        names |= {TORCHSCALE: f"{TORCHSCALE} {torchscale_version()}"}
        models |= {TORCHSCALE: build(TORCHSCALE, case)}
    except PeerMissing as missing:
        session.skip(missing)
    gates = {who: _gate(who, model, case) for who, model in models.items()}
    for gate in gates.values():
        gate.require()
    sizes = {who: sum(p.numel() for p in model.parameters()) for who, model in models.items()}
    Gate(len({*sizes.values()}) == 1, f"the decoders differ in size: {sizes}").require()
    steps = {who: training_step(model, case) for who, model in models.items()}
    seconds = alternate(steps, session.effort)
    del models, steps
    for who in seconds:
        peak = peak_of(who, case)
        metrics = {
            "step_ms": milliseconds(seconds[who]),
            "tokens_per_s": rates(float(case.B * case.T), seconds[who]),
            "peak_mib": Spread.of([peak.peak_mib]),
            "peak_over_start_mib": Spread.of([peak.peak_mib - peak.start_mib]),
        }
        if who != OURS:
            metrics["step_time_over_retnet"] = ratios(seconds[who], seconds[OURS])
        fields = {
            "B": case.B,
            "T": case.T,
            "precision": case.precision,
            **asdict(case.size),
            "parameters": sizes[who],
            "by": names[who],
        }
        session.recorder.add(BENCH, fields, metrics, gates[who])


def _gate(who: str, model: nn.Module, case: TrainCase) -> Gate:
    if isinstance(model, Decoder):
        gate_decoder(model, case.precision).require()
    loss = training_step(model, case)()
    return gate_finite(
        {f"{who}'s loss": loss} | {f"{who}'s {n}": p for n, p in model.named_parameters()}
    )
