"""Reading prompts: speed beside other people's decoders, and on and on without end alone."""

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

from retnet.bench.cases import PREFILLS, QUICK_PREFILLS, QUICK_READS, READS, PrefillCase, ReadCase
from retnet.bench.gates import all_of, gate_decoder, gate_finite, gate_size
from retnet.bench.machine import resident_mib
from retnet.bench.ours import OURS, fresh
from retnet.bench.peak_memory import WorkerFailed, apart
from retnet.bench.peers import PeerMissing
from retnet.bench.peers.roles import Prefiller
from retnet.bench.prefill_plot import plot_prefill
from retnet.bench.prefillers import build, reading
from retnet.bench.record import GateFailed
from retnet.bench.session import Session
from retnet.bench.timing import Effort, Spread, alternate, milliseconds, rates, ratios
from retnet.model import state_bytes
from retnet.model.decoding import prefill

BENCH, READ_ON = "prefill/prompt", "prefill/on"


def bench_prefill(session: Session) -> None:
    """Measure every case, and draw `prefill.png` beside the records."""
    prompts = session.choose(PREFILLS, QUICK_PREFILLS)
    texts = session.choose(READS, QUICK_READS)
    if not session.suite:
        texts = dict(list(texts.items())[-1:])  # the longest passes the others' marks
    session.plan(len(prompts) + sum(len(case.marks) for case in texts.values()))
    for name, case in prompts.items():
        session.begin(f"prompt {name}, {1 + len(case.rivals)} in turns")
        try:
            _compare(case, session)
        except (GateFailed, WorkerFailed) as error:
            session.fail(f"prompt {name}", error)
    for case in texts.values():
        _read_on(case, session)
    session.draw("prefill.png", plot_prefill)
    session.end()


def _compare(case: PrefillCase, session: Session) -> None:
    """Measure one prompt, if our decoder's forms agree.

    Raises:
        GateFailed: they do not, someone's numbers are not finite, or sizes differ.
    """
    gate = gate_decoder(fresh(case.size.config(), getattr(torch, case.dtype)).eval(), "float32")
    gate.require()
    prefillers: dict[str, Prefiller] = {OURS: build(OURS, case)}
    for who in case.rivals:
        try:
            prefillers[who] = build(who, case)
        except PeerMissing as missing:
            session.skip(missing)
    sizes = {who: it.parameters for who, it in prefillers.items()}
    gate_size(sizes[OURS], sizes).require()
    logits: dict[str, Tensor] = {}
    calls = {who: _keeping(logits, who, reading(it, case)) for who, it in prefillers.items()}
    seconds = alternate(calls, Effort(warmup=0, min_rounds=case.rounds, budget_s=0.0))
    for who, it in prefillers.items():
        metrics = {
            "prompt_ms": milliseconds(seconds[who]),
            "tokens_per_s": rates(float(case.T), seconds[who]),
            "kept_bytes": Spread.of([float(it.kept_bytes())]),
        }
        if case.apart:
            alone = apart(who, case)
            metrics["peak_mib"] = Spread.of([alone.peak_mib])
            metrics["peak_over_start_mib"] = Spread.of([alone.peak_mib - alone.start_mib])
        if who != OURS:
            metrics["time_over_retnet"] = ratios(seconds[who], seconds[OURS])
        fields = {
            "model": case.size.name,
            "parameters": it.parameters,
            "by": it.by,
            "dtype": it.dtype,
            "T": case.T,
        }
        finite = gate_finite({f"{it.by}: logits": logits[who]})
        session.recorder.add(BENCH, fields, metrics, all_of([finite, gate]))


def _keeping(kept: dict[str, Tensor], who: str, call: Callable[[], Tensor]) -> Callable[[], None]:
    """A call whose result is kept."""

    def keep() -> None:
        kept[who] = call()

    return keep


def _read_on(case: ReadCase, session: Session) -> None:
    """Read random tokens up to each mark in turn, at the memory of one chunk."""
    model = fresh(case.size.config(), getattr(torch, case.dtype)).eval()
    gate = gate_decoder(model, "float32")
    random = torch.Generator().manual_seed(0)
    prefill(model, torch.zeros(1, 64, dtype=torch.int64))  # the first call allocates
    state, read = None, 0
    for mark in case.marks:
        session.begin(f"reading up to {mark:,} tokens")
        tokens = torch.randint(model.config.vocab_size, (1, mark - read), generator=random)
        start = perf_counter()
        logits, state = prefill(model, tokens, state)
        seconds = perf_counter() - start
        metrics = {
            "tokens_per_s": Spread.of([(mark - read) / seconds]),
            "kept_bytes": Spread.of([float(state_bytes(state))]),
            "process_mib": Spread.of([resident_mib()]),
        }
        read = mark
        fields = {
            "model": case.size.name,
            "parameters": model.num_parameters(),
            "by": OURS,
            "dtype": case.dtype,
            "T": mark,
        }
        finite = gate_finite({f"logits after {mark} tokens": logits})
        session.recorder.add(READ_ON, fields, metrics, all_of([finite, gate]))
