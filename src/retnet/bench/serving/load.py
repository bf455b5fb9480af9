"""Clients at a server: how many requests and tokens in a second, how long each waits, and what of
the engine's speed HTTP costs.

The clients' own work is done on the same cores. The engine alone answers the same requests in this
process, without HTTP, in turns with the server.
"""

import random
import tempfile
import threading
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from retnet.bench.cases import LOADS, QUICK_LOADS, LoadCase
from retnet.bench.ours import fresh
from retnet.bench.record import Gate
from retnet.bench.serving.client import Answer, Client
from retnet.bench.serving.load_plot import plot_load
from retnet.bench.serving.process import Server, save_fresh
from retnet.bench.session import Session
from retnet.bench.timing import Spread, percentile, ratios
from retnet.data import Tokenizer
from retnet.model import Sampling, preset
from retnet.serve.engine import Engine, EngineConfig, FinishEvent, Request

BENCH = "serve/load"
MODEL = "load"
WORDS = "what is read once is kept in a state of one size and whoever asks again pays for news only"


class Ask(NamedTuple):
    """A request.

    Attributes:
        prompt: text, of bytes as tokens.
        max_tokens: to write, and so many are written.
        stream: whether piece by piece.
    """

    prompt: str
    max_tokens: int
    stream: bool


def bench_load(session: Session) -> None:
    """Record what clients see, for each number of them; draw `load.png`."""
    cases = session.choose(LOADS, QUICK_LOADS)
    session.plan(len(cases))
    for name, case in cases.items():
        session.begin(f"load {name}")
        with tempfile.TemporaryDirectory(prefix="retnet-load-") as folder:
            path = Path(folder, MODEL)
            save_fresh(path, case.preset)
            options = ("--running", str(case.running), "--queue", str(case.clients))
            options += ("--weights", case.weights)
            with Server(path, *options) as server:
                found = [_turn(server, case, turn) for turn in range(1 + case.turns)][1:]
        _record(session, case, found)
    session.draw("load.png", plot_load)
    session.end()


class Turn(NamedTuple):
    """The same requests, by HTTP and by the engine alone.

    Attributes:
        asks: the requests.
        answers: by HTTP.
        seconds: of all of them.
        alone_s: of the engine alone.
    """

    asks: list[Ask]
    answers: list[Answer]
    seconds: float
    alone_s: float


def _turn(server: Server, case: LoadCase, number: int) -> Turn:
    draw = random.Random(number)
    asks = [_ask(draw) for _ in range(case.requests)]
    begin = perf_counter()
    answers = _by_http(server, case, asks)
    seconds = perf_counter() - begin
    return Turn(asks, answers, seconds, _alone(case, asks))


def _ask(draw: random.Random) -> Ask:
    """Short and long, half of them streamed."""
    count = draw.choice((4, 8, 20, 60))
    prompt = " ".join(draw.choices(WORDS.split(), k=count))
    return Ask(prompt, draw.choice((8, 32, 64, 128)), draw.random() < 0.5)


def _by_http(server: Server, case: LoadCase, asks: Sequence[Ask]) -> list[Answer]:
    coming, lock = iter(asks), threading.Lock()
    answers: list[Answer] = []

    def work() -> None:
        client = Client(server.port, keep=True)
        while True:
            with lock:
                ask = next(coming, None)
            if ask is None:
                break
            answer = client.complete(_body(ask))
            with lock:
                answers.append(answer)
        client.close()

    threads = [threading.Thread(target=work) for _ in range(case.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _body(ask: Ask) -> dict[str, Any]:
    never_ends = {str(Tokenizer.bytes().bos_id): -100}
    return {
        "model": MODEL,
        "prompt": ask.prompt,
        "max_tokens": ask.max_tokens,
        "stream": ask.stream,
        "temperature": 0,
        "logit_bias": never_ends,
    }


def _alone(case: LoadCase, asks: Sequence[Ask]) -> float:
    """Seconds of an engine that is always given so many requests at once."""
    tokenizer = Tokenizer.bytes()
    model = fresh(preset(case.preset, vocab_size=tokenizer.vocab_size)).eval()
    weights = None if case.weights == "saved" else case.weights
    config = EngineConfig(max_running=case.running, weights=weights)
    engine = Engine(model, tokenizer, config)
    requests = (
        Request(
            prompt=(tokenizer.bos_id, *tokenizer.encode(ask.prompt)),
            max_tokens=ask.max_tokens,
            sampling=Sampling(temperature=0.0),
            logit_bias={tokenizer.bos_id: -100.0},
        )
        for ask in asks
    )
    begin = perf_counter()
    for request in islice(requests, case.clients):
        engine.submit(request)
    while engine.busy:
        for event in engine.step():
            if isinstance(event, FinishEvent):
                for request in islice(requests, 1):
                    engine.submit(request)
    return perf_counter() - begin


def _record(session: Session, case: LoadCase, turns: Sequence[Turn]) -> None:
    answers = [answer for turn in turns for answer in turn.answers]
    bad = [answer.status for answer in answers if answer.status != 200]
    gate = Gate(not bad, f"{len(bad)} answers have status {bad[:3]}")
    tokens = [sum(ask.max_tokens for ask in turn.asks) for turn in turns]
    times = {
        "first_token_ms": [1e3 * a.first_s for a in answers if a.first_s is not None],
        "between_tokens_ms": [1e3 * gap for a in answers for gap in a.gaps_s],
        "whole_answer_ms": [1e3 * a.seconds for a in answers],
    }
    metrics = {
        "requests_per_s": Spread.of([len(turn.asks) / turn.seconds for turn in turns]),
        "tokens_per_s": Spread.of([n / t.seconds for n, t in zip(tokens, turns, strict=True)]),
        "engine_tokens_per_s": Spread.of(
            [n / t.alone_s for n, t in zip(tokens, turns, strict=True)]
        ),
        "share_of_engine": ratios([t.alone_s for t in turns], [t.seconds for t in turns]),
        **{
            f"{name}_p{percent}": Spread.of([percentile(values, percent)])
            for name, values in times.items()
            for percent in (50, 95, 99)
            if values
        },
    }
    fields = {
        "model": case.preset,
        "dtype": case.weights,
        "clients": case.clients,
        "B": case.running,
        "requests": case.requests,
    }
    session.recorder.add(BENCH, fields, metrics, gate)
