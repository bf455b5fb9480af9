"""The engine gives a request what it would get alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from retnet.data import Tokenizer
from retnet.mixers import MIXERS
from retnet.model import Decoder, Sampling, generate, preset, rival
from retnet.model.decoding import prefill
from retnet.model.state import state_tensors
from retnet.serve.engine import (
    Engine,
    EngineConfig,
    ErrorEvent,
    FinishEvent,
    Handle,
    PromptEvent,
    QueueFull,
    Request,
    TokenEvent,
)

TOKENIZER = Tokenizer.bytes()
GREEDY = Sampling(temperature=0.0)
SMALL = {"prefill_budget": 7, "idle_prefill_budget": 11, "max_running": 5}


def decoder(name: str = "retention") -> Decoder:
    """In float64, with noise on its weights: some layers begin as nothing."""
    torch.manual_seed(2)
    base = preset("small-1m", vocab_size=TOKENIZER.vocab_size)
    (layer,) = rival(base, name).layers
    model = Decoder(replace(base, layers=(replace(layer, repeat=2),))).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def model() -> Decoder:
    return decoder()


def engine_of(model: Decoder, **changes: Any) -> Engine:
    return Engine(model, TOKENIZER, EngineConfig(**(SMALL | changes)))


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(100 * length + seed)
    return (256, *torch.randint(97, 123, (length - 1,), generator=generator).tolist())


def run(engine: Engine) -> list[Any]:
    events = []
    while engine.busy:
        events += engine.step()
    assert engine.stats.rows == 0
    return events


def tokens_of(events: list[Any], handle: Handle, sample: int = 0) -> list[int]:
    return [
        event.token
        for event in events
        if isinstance(event, TokenEvent) and (event.handle, event.sample) == (handle, sample)
    ]


def alone(model: Decoder, request: Request, sample: int = 0) -> list[int]:
    """What an engine with nothing else to do writes."""
    engine = engine_of(model)
    return tokens_of(run(engine), engine.submit(request), sample) or tokens_of(
        run(engine), engine.submit(request), sample
    )


REQUESTS = [
    Request(prompt=prompt(3), max_tokens=9, sampling=GREEDY),
    Request(prompt=prompt(40), max_tokens=4, sampling=GREEDY),
    Request(prompt=prompt(12), max_tokens=21, sampling=Sampling(seed=1, temperature=0.7)),
    Request(prompt=prompt(1), max_tokens=1, sampling=GREEDY),
    Request(prompt=prompt(25), max_tokens=12, sampling=Sampling(seed=2, top_k=9, min_p=0.01)),
    Request(prompt=prompt(17), max_tokens=30, sampling=GREEDY),
    Request(
        prompt=prompt(5),
        max_tokens=14,
        num_samples=3,
        sampling=Sampling(seed=5, top_p=0.8, repetition_penalty=1.3, frequency_penalty=0.2),
    ),
    Request(prompt=prompt(9), max_tokens=6, sampling=GREEDY, logit_bias={101: 4.0}),
]


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_writes_the_same_tokens_alone_and_in_company(name: str) -> None:
    model = decoder(name)
    engine = engine_of(model, max_running=4, max_context=64)
    handles, events = [], []
    for request in REQUESTS:  # they arrive while others run
        handles.append(engine.submit(request))
        events += [event for _ in range(3) for event in engine.step()]
    events += run(engine)
    for handle, request in zip(handles, REQUESTS, strict=True):
        text = TOKENIZER.decode(request.prompt[1:])
        if not request.logit_bias:
            want = generate(
                model,
                TOKENIZER,
                [text],
                max_tokens=request.max_tokens,
                sampling=request.sampling,
                num_samples=request.num_samples,
            )[0]
            for sample, completion in enumerate(want):
                assert tokens_of(events, handle, sample) == list(completion.tokens)
