"""The engine of a server: what it adds to decoding, what company is worth, whom a prompt delays.

What company can be worth at most is seen where nothing is served: the same prompts read and
continued as one batch, and each alone. The model is fresh, its tokens are numbers, and nothing
ends a text before its time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

import torch

from retnet.bench.gates import gate_decoding
from retnet.bench.ours import GREEDY, fresh
from retnet.bench.record import Gate
from retnet.bench.serving.numbers import Numbers
from retnet.bench.session import Session
from retnet.bench.timing import (
    QUICK_TURNS,
    Spread,
    Turns,
    in_turns,
    milliseconds,
    percentile,
    rates,
    ratios,
)
from retnet.model import Decoder, pack, preset
from retnet.model.decoding import Decoding, prefill
from retnet.ops.packed_linear import Weights
from retnet.serve.engine import Engine, EngineConfig, FinishEvent, Request, TokenEvent

BENCH = "serve/engine"
PROMPT = 64
FOREVER = 1 << 40
TURNS = Turns(num=24, most_calls=12, most_s=0.4)
COMPANY_TURNS = 3


@dataclass(frozen=True, kw_only=True)
class ServeCase:
    """An engine and its load.

    Attributes:
        preset: the decoder's name; it has 4,096 tokens.
        rows: texts at once.
        written: tokens of each text where requests come and go.
        requests: that are answered in company; two are alone.
        long_prompt: tokens of the prompt that is read while texts are written.
        long_weights: of the model then.
        quiet_steps: steps timed before it comes.
        turns: of the engine and of decoding.
        company_turns: of requests together and alone.
        suite: whether the suite of all benches measures it too.
    """

    preset: str = "small-16m"
    rows: int = 16
    written: int = 64
    requests: int = 16
    long_prompt: int = 100_000
    long_weights: Weights = "bfloat16"
    quiet_steps: int = 150
    turns: Turns = TURNS
    company_turns: int = COMPANY_TURNS
    suite: bool = False


CASES = {"small": ServeCase()}
QUICK_CASES = {
    "tiny": ServeCase(
        preset="small-1m",
        rows=3,
        written=4,
        requests=8,
        long_prompt=400,
        quiet_steps=4,
        turns=QUICK_TURNS,
        company_turns=1,
        suite=True,
    )
}


def bench_serve(session: Session) -> None:
    """Measure every case."""
    cases = session.choose(CASES, QUICK_CASES)
    session.plan(3 * len(cases))
    for case in cases.values():
        model = fresh(preset(case.preset, vocab_size=4096)).eval()
        gate = gate_decoding(model, "float32")
        gate.require()
        fields = {"model": case.preset, "parameters": model.num_parameters(), "B": case.rows}
        exact: Weights = "float32"
        loads: tuple[tuple[str, Callable[[Decoder, ServeCase], Result], Weights], ...] = (
            ("the engine beside plain decoding", _beside_decoding, exact),
            ("requests alone and in company", _company, exact),
            ("a long prompt beside texts", _long_prompt, case.long_weights),
        )
        for what, measure, weights in loads:
            session.begin(f"serve {case.preset}: {what}")
            extra, metrics, verdict = measure(pack(model, weights), case)
            session.recorder.add(BENCH, fields | {"dtype": weights} | extra, metrics, verdict)
    session.end()


Result = tuple[dict[str, str | int], dict[str, Spread], Gate]


def _engine(model: Decoder, rows: int) -> Engine:
    numbers = Numbers(model.config.vocab_size)
    config = EngineConfig(max_running=rows, prefix_cache_bytes=0, queue_size=rows)
    return Engine(model, numbers, config)


def _prompts(model: Decoder, count: int, length: int = PROMPT) -> list[tuple[int, ...]]:
    random = torch.Generator().manual_seed(length)
    size = (count, length)
    tokens = torch.randint(model.config.vocab_size, size, generator=random).tolist()
    return [tuple(row) for row in tokens]


def _writing(model: Decoder, case: ServeCase, rows: int) -> Engine:
    """An engine that writes `rows` texts without end."""
    engine = _engine(model, case.rows)
    for prompt in _prompts(model, rows):
        engine.submit(Request(prompt=prompt, sampling=GREEDY, max_tokens=FOREVER))
    while engine.stats.running < rows:
        engine.step()
    return engine


def _beside_decoding(model: Decoder, case: ServeCase) -> Result:
    """The same rows, by the engine and by `Decoding` in turns; they must write the same."""
    prompts = _prompts(model, case.rows)
    decoding = Decoding(model, *prefill(model, torch.tensor(prompts)), GREEDY)
    same = _same(model, case, prompts)
    engine = _writing(model, case, case.rows)
    calls = {"decoding": decoding.__next__, "engine": engine.step}
    seconds = in_turns(calls, case.turns)
    metrics = {
        "decoding_tokens_per_s": rates(float(case.rows), seconds["decoding"]),
        "engine_tokens_per_s": rates(float(case.rows), seconds["engine"]),
        "share_of_decoding": ratios(seconds["decoding"], seconds["engine"]),
    }
    return {"load": "texts without end"}, metrics, same


def _same(model: Decoder, case: ServeCase, prompts: Sequence[tuple[int, ...]]) -> Gate:
    """Judge the engine's tokens of requests that come and go: those that `Decoding` gives."""
    engine = _engine(model, case.rows)
    for i, prompt in enumerate(prompts):
        engine.submit(Request(prompt=prompt, sampling=GREEDY, max_tokens=4 + i))
    got: dict[int, list[int]] = {}
    while engine.busy:
        for event in engine.step():
            if isinstance(event, TokenEvent):
                got.setdefault(event.handle, []).append(event.token)
    decoding = Decoding(model, *prefill(model, torch.tensor(prompts)), GREEDY)
    steps = [token.tolist() for token in islice(decoding, 4 + len(prompts))]
    want = {i: [step[i] for step in steps[: 4 + i]] for i in range(len(prompts))}
    return Gate(got == want, "the engine writes the tokens that decoding writes")


def _company(model: Decoder, case: ServeCase) -> Result:
    """Requests per second: as many at once as there are rows, and one after another."""
    prompts = _prompts(model, case.requests)
    few, all_at_once = 2, case.rows
    ways = {
        "requests_per_s": lambda: _answer(model, case, prompts, all_at_once),
        "requests_per_s_alone": lambda: _answer(model, case, prompts[:few], 1),
        "plain_per_s": lambda: _plainly(model, case, prompts, all_at_once),
        "plain_per_s_alone": lambda: _plainly(model, case, prompts[:few], 1),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # the first time memory is found
    for _ in range(case.company_turns):
        for name, way in ways.items():
            found[name].append(way())
    together, alone, plain, plain_alone = found.values()
    metrics = {name: Spread.of(each) for name, each in found.items()} | {
        "company_over_alone": ratios(together, alone),
        "roof_of_company_over_alone": ratios(plain, plain_alone),
        "share_of_plain": ratios(together, plain),
        "share_of_plain_alone": ratios(alone, plain_alone),
    }
    extra = {"load": "requests", "prompt": PROMPT, "written": case.written}
    return extra, metrics, Gate(True, "all answered")


def _plainly(
    model: Decoder, case: ServeCase, prompts: Sequence[tuple[int, ...]], at_once: int
) -> float:
    """Answer requests without an engine, so many in a batch; return how many in a second."""
    begin = perf_counter()
    for start in range(0, len(prompts), at_once):
        batch = torch.tensor(prompts[start : start + at_once])
        decoding = Decoding(model, *prefill(model, batch), GREEDY)
        for _ in range(case.written):
            next(decoding)
    return len(prompts) / (perf_counter() - begin)


def _answer(
    model: Decoder, case: ServeCase, prompts: Sequence[tuple[int, ...]], at_once: int
) -> float:
    """Answer requests, always so many at once; return how many in a second."""
    engine = _engine(model, case.rows)
    coming = [Request(prompt=p, sampling=GREEDY, max_tokens=case.written) for p in prompts]
    begin = perf_counter()
    for _ in range(min(at_once, len(coming))):
        engine.submit(coming.pop())
    while engine.busy:
        for event in engine.step():
            if isinstance(event, FinishEvent) and coming:
                engine.submit(coming.pop())
    return len(prompts) / (perf_counter() - begin)


def _long_prompt(model: Decoder, case: ServeCase) -> Result:
    """Steps of texts being written, before a long prompt comes and while it is read."""
    engine = _writing(model, case, case.rows - 1)
    quiet = [_seconds_of_step(engine) for _ in range(case.quiet_steps)]
    (prompt,) = _prompts(model, 1, case.long_prompt)
    handle = engine.submit(Request(prompt=prompt, sampling=GREEDY, max_tokens=1))
    reading, before = [], engine.stats.tokens_read
    while engine.stats.tokens_read - before < case.long_prompt:
        reading.append(_seconds_of_step(engine))
    engine.cancel(handle)
    quiet += [_seconds_of_step(engine) for _ in range(case.quiet_steps)]
    alone = Spread.of(quiet).median
    metrics = {
        "gap_quiet_ms": milliseconds(quiet),
        "gap_quiet_p99_ms": milliseconds([percentile(quiet, 99)]),
        "gap_reading_ms": milliseconds(reading),
        "gap_reading_p99_ms": milliseconds([percentile(reading, 99)]),
        "gap_over_quiet": Spread.of([seconds / alone for seconds in reading]),
        "gap_p99_over_quiet_p99": Spread.of([percentile(reading, 99) / percentile(quiet, 99)]),
        "longest_gap_ms": milliseconds([max(reading)]),
        "prompt_tokens_per_s": rates(float(case.long_prompt), [sum(reading)]),
    }
    extra = {
        "load": "long prompt",
        "prompt": case.long_prompt,
        "prefill_budget": engine.stats.prefill_budget,
    }
    return extra, metrics, Gate(True, "all read")


def _seconds_of_step(engine: Engine) -> float:
    engine.step()
    return engine.stats.last_step_seconds
