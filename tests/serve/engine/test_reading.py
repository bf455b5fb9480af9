"""Prompts read a layer at a time, while texts are written."""

from typing import Any

import pytest
import torch

from retnet.data import Tokenizer
from retnet.model import Decoder, Sampling, preset
from retnet.serve.engine import Engine, EngineConfig, FinishEvent, Request, TokenEvent
from retnet.serve.engine.pace import Pace

TOKENIZER = Tokenizer.bytes()
WRITER = Request(
    prompt=(256, 97, 98),
    max_tokens=60,
    sampling=Sampling(temperature=0.0),
    logit_bias={256: -100.0},
)
LONG = tuple(97 + i % 20 for i in range(70))


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    return Decoder(preset("small-1m", vocab_size=TOKENIZER.vocab_size)).double().eval()


@pytest.fixture(autouse=True)
def _least(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step reads no more than a layer, however quick this machine is."""
    monkeypatch.setattr(Pace, "allows", lambda *_: False)


def engine_of(model: Decoder) -> Engine:
    engine = Engine(model, TOKENIZER, EngineConfig(max_running=4, prefix_cache_bytes=1 << 24))
    engine.submit(WRITER)
    while not engine.stats.running:
        engine.step()
    return engine


def run(engine: Engine) -> list[Any]:
    events = []
    while engine.busy:
        events += engine.step()
    return events


def tokens_of(events: list[Any], handle: int) -> list[int]:
    return [e.token for e in events if isinstance(e, TokenEvent) and e.handle == handle]


def test_layer_by_layer_is_the_same(model: Decoder) -> None:
    tokens = torch.randint(256, (2, 9))
    valid = torch.ones(2, 9).bool()
    valid[1, 5:] = False
    with torch.inference_mode():
        want, state = model.hidden(tokens, valid=valid)
        layers = model.hidden_by_layers(tokens, valid=valid)
        steps = 0
        while True:
            try:
                next(layers)
            except StopIteration as end:
                got, other = end.value
                break
            steps += 1
    assert steps == len(model.layers)
    assert torch.equal(got[valid], want[valid])
    assert torch.equal(other.position, state.position)


def test_texts_are_written_between_the_layers_of_a_prompt(model: Decoder) -> None:
    alone = Engine(model, TOKENIZER)
    request = Request(prompt=LONG, max_tokens=5, sampling=Sampling(temperature=0.0))
    handle = alone.submit(request)
    want = tokens_of(run(alone), handle)
    engine = engine_of(model)
    handle = engine.submit(request)
    before, events = engine.stats.tokens_generated, []
    while engine.stats.tokens_read < len(LONG):
        events += engine.step()
    assert engine.stats.tokens_generated - before >= 2 * len(model.layers)
    assert tokens_of(events + run(engine), handle) == want


def test_a_request_called_off_while_it_is_read_leaves_nothing(model: Decoder) -> None:
    engine = engine_of(model)
    handle = engine.submit(Request(prompt=LONG, max_tokens=5))
    engine.step()
    engine.cancel(handle)
    engine.step()
    assert engine.stats.rows == 1
    events = run(engine)
    assert engine.stats.rows == 0
    assert not tokens_of(events, handle)
    (end,) = [event for event in events if isinstance(event, FinishEvent)]
    assert end.usage.completion_tokens == WRITER.max_tokens


def test_one_of_two_that_are_read_together_is_called_off(model: Decoder) -> None:
    engine = engine_of(model)
    gone, stays = (
        engine.submit(Request(prompt=LONG[:2], max_tokens=3, sampling=Sampling(temperature=0.0)))
        for _ in range(2)
    )
    engine.step()
    engine.cancel(gone)
    events = run(engine)
    assert not tokens_of(events, gone)
    assert tokens_of(events, stays)
    assert engine.stats.rows == 0
