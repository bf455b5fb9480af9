"""Many sessions on disk: how long it takes to find one, read its state and commit a turn."""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from retnet.bench.cases import QUICK_SESSIONS, SESSIONS, SessionsCase
from retnet.bench.record import Gate, GateFailed
from retnet.bench.session import Session
from retnet.bench.timing import Spread
from retnet.model import Decoder, state_bytes
from retnet.model.state import DecoderState, state_tensors, with_tensors
from retnet.serve.sessions import Identity, Limits, SessionStore, Stored, Turn, identify

BENCH = "sessions"


def bench_sessions(session: Session) -> None:
    """Record the milliseconds of resuming, committing and forking among many sessions."""
    case = QUICK_SESSIONS if session.quick else SESSIONS
    torch.manual_seed(0)
    identity = identify(Decoder(case.size.config()).eval())
    session.plan(2)
    with tempfile.TemporaryDirectory(prefix="retnet-sessions-") as name:
        folder = Path(name)
        session.begin(f"{case.num:,} sessions are written")
        _fill(folder, identity, case)
        session.begin("some are resumed")
        store = SessionStore(folder, identity, Limits(memory_bytes=0))
        draw = random.Random(0)
        chosen = [draw.randrange(case.num) for _ in range(case.samples)]
        wrong: list[int] = []

        def resume(number: int) -> Stored:
            return store.get(_name(number), "")

        def check(number: int, stored: Stored) -> None:
            if not _equal(stored.state, _state(identity, number)):
                wrong.append(number)

        metrics = {
            "resume_ms": _each(chosen, resume, check),
            "commit_ms": _each(chosen, lambda number: _commit(store, identity, number)),
            "fork_ms": _each(
                chosen, lambda number: store.fork(_name(number), f"fork {draw.random()}", "")
            ),
            "list_ms": _each(chosen, lambda number: store.list("", after=_name(number))),
        }
        begin = perf_counter()
        SessionStore(folder, identity).close()
        metrics["open_ms"] = Spread.of([1e3 * (perf_counter() - begin)])
        store.close()
    gate = Gate(not wrong, f"{len(wrong)} of {case.samples} states are not those written")
    fields = {
        "sessions": case.num,
        "state_bytes": state_bytes(identity.template),
    }
    try:
        session.recorder.add(BENCH, fields, metrics, gate)
    except GateFailed as error:
        session.fail(BENCH, error)
    session.end()


def _each(
    numbers: list[int],
    call: Callable[[int], object],
    check: Callable[[int, Any], None] | None = None,
) -> Spread:
    """Milliseconds of each call; what it returns is checked outside of them."""
    times = []
    for number in numbers:
        begin = perf_counter()
        result = call(number)
        times.append(1e3 * (perf_counter() - begin))
        if check is not None:
            check(number, result)
    return Spread.of(times)


def _fill(folder: Path, identity: Identity, case: SessionsCase) -> None:
    store = SessionStore(folder, identity, Limits(memory_bytes=0))
    for number in range(case.num):
        turn = Turn(state=_state(identity, number), tokens=[number % 256] * 100, meta={})
        store.commit(_name(number), "", turn, None)
    store.close()


def _commit(store: SessionStore, identity: Identity, number: int) -> None:
    turn = Turn(state=_state(identity, number), tokens=[1] * 100, meta={})
    version = store.turns(_name(number), "")[-1].version
    store.commit(_name(number), "", turn, version)


def _name(number: int) -> str:
    return f"session {number:06}"


def _state(identity: Identity, number: int) -> DecoderState:
    tensors = {
        name: torch.full_like(tensor, number)
        for name, tensor in state_tensors(identity.template).items()
    }
    return with_tensors(identity.template, tensors)


def _equal(a: DecoderState, b: DecoderState) -> bool:
    ours, theirs = state_tensors(a), state_tensors(b)
    return all(tensor.equal(theirs[name]) for name, tensor in ours.items())
