"""Train on one document of a million tokens: with the state carried, memory does not grow.

Beside it, the same decoder trained on ever longer beginnings of the document in one step each,
whose activations must all be kept.
"""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from retnet.bench.cases import DOCUMENT, QUICK_DOCUMENT, DocumentCase, ModelSize
from retnet.bench.document_plot import plot_document
from retnet.bench.machine import peak_mib
from retnet.bench.record import Gate
from retnet.bench.session import Session
from retnet.bench.timing import Spread
from retnet.data import Batch, Tokenizer, TokenStream, stream_segments
from retnet.model import Decoder, DecoderState
from retnet.train import TrainSection, keep_freed_memory
from retnet.train.loop import accumulate_gradients
from retnet.train.optimizer import build_optimizer

BENCH = "document"
MARKS = 40  # measurements on the way through the document


class Reached(NamedTuple):
    """What a process was seen to hold when it had trained on some tokens.

    Attributes:
        tokens: trained on so far.
        process_mib: the most it has held up to here.
        tokens_per_s: since the mark before.
        loss: of the last step, nats per token.
    """

    tokens: int
    process_mib: float
    tokens_per_s: float
    loss: float


def bench_document(session: Session) -> None:
    """Record memory and speed on the way, and draw `document.png` beside the records."""
    case = QUICK_DOCUMENT if session.quick else DOCUMENT
    session.plan(len(case.whole) + 1)
    parameters = Decoder(case.size.config()).num_parameters()
    runs = [(True, case.seq_len, case.tokens), *((False, T, T) for T in case.whole)]
    for carried, seq_len, tokens in runs:
        session.begin(
            f"{tokens:,} tokens " + (f"in steps of {seq_len:,}" if carried else "in one step")
        )
        for at in _in_a_process_of_its_own(case, seq_len, tokens):
            session.recorder.add(
                BENCH,
                {
                    "parameters": parameters,
                    "precision": "float32",
                    "seq_len": seq_len,
                    "carried": carried,
                    "tokens": at.tokens,
                },
                {
                    "process_mib": Spread.of([at.process_mib]),
                    "tokens_per_s": Spread.of([at.tokens_per_s]),
                    "loss": Spread.of([at.loss]),
                },
                Gate(bool(np.isfinite(at.loss)), f"a loss of {at.loss}"),
            )
    session.draw("document.png", plot_document)
    session.end()


def read_on(case: DocumentCase, seq_len: int, tokens: int) -> Iterator[Reached]:
    """Train on the beginning of the document, one step after the other, and report at marks.

    Args:
        case: the document and the decoder.
        seq_len: tokens of a step; as many as `tokens` for one step without anything carried.
        tokens: of the beginning.
    """
    torch.manual_seed(0)
    stream = _document(tokens + 1)
    model = Decoder(case.size.config()).train()
    optimizer = build_optimizer(model, TrainSection(steps=1, learning_rate=1e-3))
    every = max(tokens // seq_len // MARKS, 1)
    state: DecoderState | None = None
    seen, since, begin = 0, 0, perf_counter()
    for number, batch in enumerate(stream_segments(stream, seq_len=seq_len), 1):
        loss, state = _step(model, optimizer, batch, state)
        seen += batch.inputs.numel()
        if number % every == 0 or seen == tokens:
            now = perf_counter()
            yield Reached(seen, peak_mib(), (seen - since) / (now - begin), loss)
            since, begin = seen, now


def _step(
    model: Decoder, optimizer: torch.optim.Optimizer, batch: Batch, state: DecoderState | None
) -> tuple[float, DecoderState]:
    parts = [(batch, state)]
    loss, (after,) = accumulate_gradients(model, parts, batch.inputs.numel(), nullcontext)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), after


def _document(num_tokens: int) -> TokenStream:
    """Python's standard library as one document of bytes."""
    size, texts = 0, []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
        size += len(texts[-1].encode())
        if size >= num_tokens:
            break
    stream = TokenStream.from_texts(["".join(texts)], Tokenizer.bytes())
    if stream.num_tokens < num_tokens:
        raise ValueError(
            f"the standard library's own files hold {stream.num_tokens:,} bytes, and {num_tokens:,}"
            " are wanted; install Python with its sources"
        )
    return TokenStream(
        stream.tokens[:num_tokens], stream.document_starts, num_tokens - 1, stream.bos_id
    )


def _in_a_process_of_its_own(case: DocumentCase, seq_len: int, tokens: int) -> Iterator[Reached]:
    """What a run held before would hide what the next one takes."""
    words = [json.dumps(asdict(case)), str(seq_len), str(tokens), str(torch.get_num_threads())]
    with subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import report; report()", *words],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield Reached(*json.loads(line))
    if process.returncode != 0:
        raise ValueError(
            f"training on {tokens:,} tokens in steps of {seq_len:,} ended with status "
            f"{process.returncode}; -9 is the system's answer to too little memory"
        )


def report() -> None:
    """Be that other process: write one line of JSON for each mark."""
    text, seq_len, tokens, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    keep_freed_memory()
    fields = json.loads(text)
    case = DocumentCase(**fields | {"size": ModelSize(**fields["size"])})
    for at in read_on(case, int(seq_len), int(tokens)):
        sys.stdout.write(json.dumps(at) + "\n")
        sys.stdout.flush()
