"""Decoding after ever longer texts: time and memory for a token do not depend on what came before.

A text is read in chunks; at each mark the state is kept. Then every mark's state is stepped in
turns, a few tokens at a time, so that drift of the machine hits all marks alike.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch

from retnet.bench.cases import DECODE, QUICK_DECODE, DecodeCase
from retnet.bench.decode_plot import plot_decode
from retnet.bench.gates import gate_decoder
from retnet.bench.machine import resident_mib
from retnet.bench.record import GateFailed, Scalar
from retnet.bench.session import Session
from retnet.bench.timing import Spread, milliseconds, rates
from retnet.hub import load_checkpoint
from retnet.model import Decoder, DecoderState, state_bytes
from retnet.model.decoding import prefill

BENCH = "decode"
TURN = 8  # tokens stepped from one state before the next one's turn


class Reached(NamedTuple):
    """What was seen on reading a text up to a mark.

    Attributes:
        context: tokens read.
        state: after the last of them.
        prefill_tokens_per_s: since the mark before.
        process_mib: memory that the process held here, without the states kept for later.
    """

    context: int
    state: DecoderState
    prefill_tokens_per_s: float
    process_mib: float


def bench_decode(session: Session, checkpoint: Path | None = None) -> None:
    """Measure the case's decoder, or a checkpoint's, and draw `decode.png` beside the records."""
    case = QUICK_DECODE if session.quick else DECODE
    session.plan(len(case.marks) + 2)
    session.begin("gate of decode")
    model = _fresh(case) if checkpoint is None else load_checkpoint(checkpoint)[0]
    try:
        _measure(session, case, model.eval(), "fresh" if checkpoint is None else checkpoint.name)
    except GateFailed as error:
        session.fail("decode", error)
    session.end()


def _measure(session: Session, case: DecodeCase, model: Decoder, name: str) -> None:
    gate = gate_decoder(model, "float32")
    gate.require()
    reached = read_to_marks(
        model, case.marks, lambda mark: session.begin(f"reading up to {mark:,} tokens")
    )
    session.begin(f"{case.steps} tokens after each of {len(reached)} contexts")
    times = time_steps(model, [at.state for at in reached], case.steps)
    fields: dict[str, Scalar] = {
        "model": name,
        "d_model": model.config.d_model,
        "num_layers": model.config.num_layers,
        "parameters": model.num_parameters(),
        "dtype": str(model.embed_tokens.weight.dtype).removeprefix("torch."),
        "B": 1,
    }
    for at, seconds in zip(reached, times, strict=True):
        metrics = {
            "token_ms": milliseconds(seconds),
            "tokens_per_s": rates(1.0, seconds),
            "state_bytes": Spread.of([float(state_bytes(at.state))]),
            "process_mib": Spread.of([at.process_mib]),
            "prefill_tokens_per_s": Spread.of([at.prefill_tokens_per_s]),
        }
        session.recorder.add(BENCH, {**fields, "context": at.context}, metrics, gate)
    session.draw("decode.png", plot_decode)


def read_to_marks(
    model: Decoder, marks: Sequence[int], tell: Callable[[int], None]
) -> list[Reached]:
    """Read random tokens up to each mark in turn, at the memory of one chunk.

    Args:
        model: in evaluation mode.
        marks: numbers of tokens, increasing.
        tell: called with each mark before the text up to it is read.
    """
    random = torch.Generator().manual_seed(0)
    reached: list[Reached] = []
    prefill(model, torch.zeros(1, 64, dtype=torch.int64))  # the first call allocates
    state, read = None, 0
    for mark in marks:
        tell(mark)
        tokens = torch.randint(model.config.vocab_size, (1, mark - read), generator=random)
        start = perf_counter()
        _, state = prefill(model, tokens, state)
        seconds = perf_counter() - start
        kept = sum(state_bytes(at.state) for at in reached) / 2**20
        reached.append(Reached(mark, state, (mark - read) / seconds, resident_mib() - kept))
        read = mark
    return reached


@torch.inference_mode()
def time_steps(model: Decoder, states: Sequence[DecoderState], steps: int) -> list[list[float]]:
    """Seconds of each of `steps` greedy tokens after each state.

    A turn begins with a token that does not count: the other states' turns took the caches.
    """
    seconds: list[list[float]] = [[] for _ in states]
    states = list(states)
    token = torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(-(-steps // TURN)):
        for index, times in enumerate(seconds):
            for warm in range(min(TURN, steps - len(times)) + 1):
                start = perf_counter()
                logits, states[index] = model(token, states[index])
                token = logits[:, -1].argmax(-1, keepdim=True)
                if warm > 0:
                    times.append(perf_counter() - start)
    return seconds


def _fresh(case: DecodeCase) -> Decoder:
    torch.manual_seed(0)
    return Decoder(case.size.config())
