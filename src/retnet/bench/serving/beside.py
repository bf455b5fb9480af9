"""The engine beside other people's, with the same requests: long prompts that all come at once."""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch

from retnet.bench.cases import BESIDES, QUICK_BESIDES, BesideCase
from retnet.bench.gates import all_of, gate_decoding, gate_size
from retnet.bench.ours import GREEDY, OURS, fresh
from retnet.bench.peers import PeerMissing, continuous_batching
from retnet.bench.peers.roles import Batcher, Written
from retnet.bench.record import Gate
from retnet.bench.serving.numbers import Numbers
from retnet.bench.session import Session
from retnet.bench.sizes import ModelSize
from retnet.bench.timing import Spread, ratios
from retnet.model import pack
from retnet.ops.packed_linear import Weights
from retnet.serve.engine import Engine, EngineConfig, Request, TokenEvent

BENCH = "serve/beside"
RIVALS: dict[str, Callable[[ModelSize], Batcher]] = {
    "transformers bfloat16": lambda size: continuous_batching.batcher(size, torch.bfloat16)
}


def bench_beside(session: Session) -> None:
    """Measure every case."""
    cases = session.choose(BESIDES, QUICK_BESIDES)
    session.plan(len(cases))
    for name, case in cases.items():
        session.begin(f"beside others: {name}")
        batchers = [our_batcher(case.size, case.weights)]
        for build in RIVALS.values():
            try:
                batchers.append(build(case.size))
            except PeerMissing as why:
                session.skip(why)
        _measure(session, case, batchers)
    session.end()


def our_batcher(size: ModelSize, weights: Weights) -> Batcher:
    """The engine, as `retnet serve` runs it."""
    plain = fresh(size.config()).eval()
    gate_decoding(plain, weights).require()
    model = pack(plain, weights)

    def write(prompts: Sequence[Sequence[int]], count: int) -> Written:
        config = EngineConfig(max_running=len(prompts), prefix_cache_bytes=0)
        engine = Engine(model, Numbers(size.vocab_size), config)
        begin = perf_counter()
        handles = [
            engine.submit(Request(prompt=tuple(prompt), sampling=GREEDY, max_tokens=count))
            for prompt in prompts
        ]
        written = {handle: ([], []) for handle in handles}
        while engine.busy:
            for event in engine.step():
                if isinstance(event, TokenEvent):
                    tokens, at_s = written[event.handle]
                    tokens.append(event.token)
                    at_s.append(perf_counter() - begin)
        return Written([one[0] for one in written.values()], [one[1] for one in written.values()])

    return Batcher(OURS, weights, plain.num_parameters(), write)


def _measure(session: Session, case: BesideCase, batchers: Sequence[Batcher]) -> None:
    random = torch.Generator().manual_seed(0)
    shape = (case.rows, case.context)
    prompts = torch.randint(case.size.vocab_size, shape, generator=random).tolist()
    short = [prompt[:70] for prompt in prompts]
    for batcher in batchers:
        batcher.write(short, 2)  # the first time memory is found
    found: dict[str, list[Written]] = {batcher.by: [] for batcher in batchers}
    for _ in range(case.turns):
        for batcher in batchers:
            found[batcher.by].append(batcher.write(prompts, case.written))
    ours = batchers[0]
    sizes = {batcher.by: batcher.parameters for batcher in batchers}
    counts = {len(one) for each in found.values() for turn in each for one in turn.tokens}
    gate = all_of(
        [gate_size(ours.parameters, sizes), Gate(counts == {case.written}, f"{counts} tokens")]
    )
    for batcher in batchers:
        rates = {
            "tokens_per_s": [_rate(turn) for turn in found[batcher.by]],
            "tokens_per_s_with_reading": [_whole_rate(turn) for turn in found[batcher.by]],
        }
        metrics = {name: Spread.of(each) for name, each in rates.items()}
        if batcher is not ours:
            mine = found[ours.by]
            metrics["retnet_over_it"] = ratios([_rate(t) for t in mine], rates["tokens_per_s"])
            metrics["retnet_over_it_with_reading"] = ratios(
                [_whole_rate(t) for t in mine], rates["tokens_per_s_with_reading"]
            )
        fields = {
            "model": case.size.name,
            "parameters": batcher.parameters,
            "by": batcher.by,
            "dtype": batcher.dtype,
            "context": case.context,
            "B": case.rows,
            "written": case.written,
        }
        session.recorder.add(BENCH, fields, metrics, gate)


def _rate(written: Written) -> float:
    """Tokens per second while all texts are being written."""
    begin = max(at_s[0] for at_s in written.at_s)
    end = min(at_s[-1] for at_s in written.at_s)
    count = sum(begin < at <= end for at_s in written.at_s for at in at_s)
    assert count, "the first text ends before the last begins: more must be written"
    return count / (end - begin)


def _whole_rate(written: Written) -> float:
    """Tokens per second from the requests to the last token."""
    end = max(at_s[-1] for at_s in written.at_s)
    return sum(map(len, written.at_s)) / end
