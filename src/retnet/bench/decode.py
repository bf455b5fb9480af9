"""Decoding: what the next token costs after a text of some length, in one row or in many.

Every token must at least read the weights and what is kept of the texts once. Beside each
competitor a block of as many bytes is read, which is its floor: small blocks stay in the caches,
and so do small models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from retnet.bench.cases import DECODES, QUICK_DECODES, DecodeCase
from retnet.bench.decode_plot import plot_decode
from retnet.bench.gates import all_of, gate_decoding, gate_finite, gate_rows, gate_size
from retnet.bench.machine import Reads
from retnet.bench.ours import fresh
from retnet.bench.peers.roles import Speaker
from retnet.bench.record import Gate, GateFailed
from retnet.bench.session import Session
from retnet.bench.speakers import (
    EXTRA,
    WEIGHTS,
    Room,
    has_compiled,
    is_ours,
    our_speakers,
    rival_speakers,
)
from retnet.bench.timing import Spread, Turns, in_turns, milliseconds, rates, ratios
from retnet.hub import load_checkpoint
from retnet.model import Decoder
from retnet.model.steps import Kernels

BENCH = "decode/step"
TURNS = Turns(num=4, most_calls=32, most_s=0.25)  # 4 * (32 + 1) tokens are within EXTRA


def bench_decode(session: Session, checkpoint: Path | None = None) -> None:
    """Measure every case, or a checkpoint's decoder in them, and draw `decode.png`."""
    cases = session.choose(DECODES, QUICK_DECODES)
    sizes = [case.size for case in cases.values()]
    groups = {size.name: [c for c in cases.values() if c.size == size] for size in sizes}
    model = None if checkpoint is None else load_checkpoint(checkpoint)[0].eval()
    if checkpoint is not None:  # one size, and nobody beside it
        alone = {replace(case, rivals=()) for case in next(iter(groups.values()))}
        groups = {checkpoint.name: sorted(alone, key=lambda case: (case.context, case.B))}
    session.plan(sum(1 + len(group) for group in groups.values()))
    reads = Reads()
    for name, group in groups.items():
        _measure_group(name, group, model, reads, session)
    session.draw("decode.png", plot_decode)
    session.end()


def _measure_group(
    name: str,
    group: Sequence[DecodeCase],
    model: Decoder | None,
    reads: Reads,
    session: Session,
) -> None:
    """All cases of one size; what those of another need of memory is free by then."""
    session.begin(f"decode {name}: loading and gates")
    ours = fresh(group[0].size.config()).eval() if model is None else model
    try:
        speakers, gate = _ready(ours, group, session)
    except GateFailed as error:
        session.fail(f"decode {name}", error)
        return
    for case in group:
        session.begin(f"decode {name} after {case.context:,} tokens, {case.B} rows")
        chosen = {who: it for who, it in speakers.items() if who in case.rivals or is_ours(who)}
        _measure(name, case, chosen, gate, reads, session)


def _ready(
    ours: Decoder, group: Sequence[DecodeCase], session: Session
) -> tuple[dict[str, Speaker], Gate]:
    """All who decode in these cases, ours first, once ours computes what it should."""
    speakers = our_speakers(ours, session)
    kernels: tuple[Kernels, ...] = ("torch", "numba") if has_compiled(speakers) else ("torch",)
    gate = all_of([gate_decoding(ours, kind, by) for kind in WEIGHTS for by in kernels])
    gate.require()
    speakers |= rival_speakers(rooms(group), group[0].size, session)
    sizes = {who: it.parameters for who, it in speakers.items()}
    gate_size(next(iter(sizes.values())), sizes).require()
    return speakers, gate


def rooms(group: Sequence[DecodeCase]) -> dict[str, Room]:
    """What each rival must be ready for: the cases that it is in, and no others."""
    rivals = dict.fromkeys(who for case in group for who in case.rivals)
    own = {who: [case for case in group if who in case.rivals] for who in rivals}
    return {
        who: Room(max(case.context for case in cases), max(case.B for case in cases))
        for who, cases in own.items()
    }


def _measure(
    name: str,
    case: DecodeCase,
    speakers: Mapping[str, Speaker],
    gate: Gate,
    reads: Reads,
    session: Session,
) -> None:
    opened = {who: it.open(case.context, case.B, EXTRA) for who, it in speakers.items()}
    needs = {who: it.weight_bytes + it.kept_bytes for who, it in opened.items()}
    reads.reserve(max(needs.values()))
    calls: dict[str, Callable[[], object]] = {}
    for who, it in opened.items():
        calls[who] = it.steps.__next__
        calls[f"{who}: reading"] = reads.of(needs[who])
    seconds = in_turns(calls, session.turns(TURNS))
    best = min((who for who in speakers if is_ours(who)), key=lambda who: median(seconds[who]))
    for who, it in speakers.items():
        logits, times = opened[who].steps.logits, seconds[who]
        verdict = all_of([gate_finite({f"{who}: logits": logits}), gate_rows(who, logits), gate])
        if not verdict.passed:
            session.fail(f"decode {name}, {case.context} tokens, {case.B} rows", verdict.why)
            continue
        metrics = {
            "token_ms": milliseconds(times),
            "tokens_per_s": rates(float(case.B), times),
            "kept_bytes": Spread.of([float(opened[who].kept_bytes)]),
            "weight_bytes": Spread.of([float(opened[who].weight_bytes)]),
            "share_of_reading": ratios(seconds[f"{who}: reading"], times),
        }
        if who != best:
            metrics["time_over_retnet"] = ratios(times, seconds[best])
        fields = {
            "model": name,
            "parameters": it.parameters,
            "by": it.by,
            "dtype": it.dtype,
            "context": case.context,
            "B": case.B,
        }
        session.recorder.add(BENCH, fields, metrics, verdict)
