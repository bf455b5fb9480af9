"""The engine gives a request what it would get alone."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from retnet.data import Tokenizer
from retnet.mixers import MIXERS
from retnet.model import Decoder, Sampling, generate, preset, rival, select_rows
from retnet.model.decoding import prefill
from retnet.model.state import state_tensors, with_tensors
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
    pool,
)

TOKENIZER = Tokenizer.bytes()
GREEDY = Sampling(temperature=0.0)
SMALL: dict[str, Any] = {"prefill_budget": 7, "idle_prefill_budget": 11, "max_running": 5}


def decoder(name: str = "retention") -> Decoder:
    """In float64, with noise on its weights: some layers begin as nothing."""
    torch.manual_seed(2)
    base = replace(preset("small-1m", vocab_size=TOKENIZER.vocab_size), d_model=64)
    (layer,) = rival(base, name).layers
    model = Decoder(replace(base, layers=(replace(layer, repeat=2),))).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
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


def one(engine: Engine, request: Request) -> list[Any]:
    """The events of a request of which there is nothing else to do."""
    engine.submit(request)
    return run(engine)


def finish(events: list[Any]) -> FinishEvent:
    (event,) = [event for event in events if isinstance(event, FinishEvent)]
    return event


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
]


def expected(model: Decoder, request: Request) -> list[list[int]]:
    """What `generate` writes, alone."""
    completions = generate(
        model,
        TOKENIZER,
        [TOKENIZER.decode(request.prompt[1:])],
        max_tokens=request.max_tokens,
        sampling=request.sampling,
        num_samples=request.num_samples,
    )
    return [list(completion.tokens) for completion in completions[0]]


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_writes_in_company_what_it_writes_alone(name: str) -> None:
    model = decoder(name)
    engine = engine_of(model, max_running=4, max_context=64)
    asked = REQUESTS if name == "retention" else REQUESTS[:4]
    handles, events = [], []
    for request in asked:  # they arrive while others run
        handles.append(engine.submit(request))
        events += [event for _ in range(3) for event in engine.step()]
    events += run(engine)
    for handle, request in zip(handles, asked, strict=True):
        for sample, tokens in enumerate(expected(model, request)):
            assert tokens_of(events, handle, sample) == tokens


def test_a_place_that_others_had_leaks_nothing(model: Decoder) -> None:
    engine = engine_of(model, max_running=1, prefix_cache_bytes=0)
    request = REQUESTS[2]
    first = tokens_of(one(engine, request), Handle(0))
    for other in (REQUESTS[1], REQUESTS[5]):
        one(engine, other)
    again = one(engine, request)
    assert tokens_of(again, Handle(3)) == first == expected(model, request)[0]


def test_cancelled_requests_say_nothing_more_and_free_their_rows(model: Decoder) -> None:
    engine = engine_of(model, max_running=2)
    writing = engine.submit(Request(prompt=prompt(4), max_tokens=500, sampling=GREEDY))
    reading = engine.submit(Request(prompt=prompt(400), max_tokens=500))
    waiting = engine.submit(Request(prompt=prompt(5), max_tokens=500))
    last = engine.submit(REQUESTS[0])
    for _ in range(4):
        engine.step()
    assert engine.stats.rows == 2
    for handle in (writing, reading, waiting):
        engine.cancel(handle)
        engine.cancel(handle)
    events = engine.step()
    assert {event.handle for event in events} <= {last}
    assert engine.stats.rows == 1
    events += run(engine)
    assert tokens_of(events, last) == expected(model, REQUESTS[0])[0]
    assert engine.stats.requests_cancelled == 3
    engine.cancel(last)  # too late, and no error
    assert engine.step() == []


def test_an_engine_whose_last_text_was_cancelled_says_that_nothing_runs(model: Decoder) -> None:
    engine = engine_of(model)
    handle = engine.submit(Request(prompt=prompt(4), max_tokens=500))
    for _ in range(3):
        engine.step()
    assert engine.stats.running == 1
    engine.cancel(handle)
    engine.step()
    assert (engine.stats.rows, engine.stats.running) == (0, 0)


def test_a_long_prompt_stops_nobody(model: Decoder) -> None:
    engine = engine_of(model)
    short = engine.submit(Request(prompt=prompt(3), max_tokens=40, sampling=GREEDY))
    long = engine.submit(Request(prompt=prompt(200), max_tokens=2, sampling=GREEDY))
    written = []
    engine.step()  # both get on from the first step
    while not tokens_of(written, long):
        events = engine.step()
        written += events
        assert len(tokens_of(events, short)) == 1 or engine.stats.running == 0
        if engine.stats.steps > 35:
            break
    assert len(tokens_of(written, short)) >= 200 / SMALL["prefill_budget"] - 3


@pytest.mark.parametrize("name", ["retention", "attention"])
def test_texts_go_on_after_the_room_of_their_opened_states(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "ROOM", 5)
    model = decoder(name)
    engine = engine_of(model)
    request = Request(prompt=prompt(3), max_tokens=18, sampling=GREEDY)
    assert tokens_of(one(engine, request), Handle(0)) == expected(model, request)[0]


def test_a_state_that_is_kept_goes_on_like_one_text(model: Decoder) -> None:
    first = Request(prompt=prompt(6), max_tokens=5, sampling=GREEDY, keep_state=True)
    engine = engine_of(model)
    events = one(engine, first)
    state, written = finish(events).state, tokens_of(events, Handle(0))
    assert state is not None
    assert int(state.position) == 6 + 5
    before = {name: leaf.clone() for name, leaf in state_tensors(state).items()}
    _, want = prefill(model, torch.tensor([[*first.prompt, *written]]))
    for name, leaf in state_tensors(want).items():
        torch.testing.assert_close(state_tensors(state)[name], leaf, rtol=1e-9, atol=1e-9)
    more = Request(prompt=(97, 98), state=state, max_tokens=7, sampling=GREEDY, num_samples=2)
    events = one(engine, more)
    whole = Request(prompt=(*first.prompt, *written, 97, 98), max_tokens=7, sampling=GREEDY)
    want = tokens_of(one(engine, whole), Handle(2))
    assert tokens_of(events, Handle(1), 0) == tokens_of(events, Handle(1), 1) == want
    for name, leaf in state_tensors(state).items():
        assert torch.equal(leaf, before[name]), "it is the caller's"


def test_the_state_after_an_end_token_is_that_before_it(model: Decoder) -> None:
    engine = engine_of(model)
    ends = Request(prompt=prompt(6), max_tokens=9, logit_bias={256: 1e4}, keep_state=True)
    events = one(engine, ends)
    done = finish(events)
    assert (done.finish_reason, done.usage) == ("stop", (6, 0, 0))
    assert done.state is not None
    assert int(done.state.position) == 6
    assert len(events) == 1


def test_max_tokens_0_reads_and_echo_tells_the_prompt(model: Decoder) -> None:
    asked = Request(prompt=prompt(30), max_tokens=0, logprobs=2, echo=True, keep_state=True)
    told, done = one(engine_of(model), asked)
    assert isinstance(told, PromptEvent)
    assert (done.finish_reason, int(done.state.position)) == ("length", 30)
    assert told.logprobs[0] is None
    with torch.inference_mode():
        exact = model(torch.tensor([asked.prompt]))[0][0].float().log_softmax(-1)
    for i, entry in enumerate(told.logprobs[1:], 1):
        assert entry is not None
        assert entry.token == asked.prompt[i]
        assert entry.logprob == pytest.approx(float(exact[i - 1, entry.token]), abs=1e-5)
        assert entry.top[0][1] == pytest.approx(float(exact[i - 1].max()), abs=1e-5)
        assert len(entry.top) == 2


def test_logprobs_are_the_models_own_whatever_the_settings(model: Decoder) -> None:
    changed = Request(
        prompt=prompt(8), max_tokens=3, sampling=GREEDY, logprobs=0, logit_bias={100: 50.0}
    )
    events = one(engine_of(model), changed)
    assert tokens_of(events, Handle(0)) == [100, 100, 100]
    with torch.inference_mode():
        text = torch.tensor([[*changed.prompt, 100, 100]])
        exact = model(text)[0][0, -3:].float().log_softmax(-1)
    told = [event.logprob for event in events if isinstance(event, TokenEvent) and event.logprob]
    assert [entry.logprob for entry in told] == pytest.approx(exact[:, 100].tolist(), abs=1e-5)
    assert [entry.top for entry in told] == [(), (), ()]


def test_stop_strings_end_a_text_and_are_not_shown(model: Decoder) -> None:
    bias = {ord("a"): 1e4}
    request = Request(prompt=prompt(4), max_tokens=9, logit_bias=bias, stop=("aaa",))
    events = one(engine_of(model), request)
    assert "".join(event.text for event in events) == ""
    assert finish(events).finish_reason == "stop"
    assert finish(events).usage.completion_tokens == 3


def test_prompts_that_begin_alike_are_read_once(model: Decoder) -> None:
    engine = engine_of(model)
    common = prompt(300)
    first = Request(prompt=(*common, 97), max_tokens=3, sampling=GREEDY, marks=(100, 300))
    second = Request(prompt=(*common, 98, 99), max_tokens=8, sampling=GREEDY)
    third = Request(prompt=(*common[:120], 98, 99), max_tokens=8, sampling=GREEDY)
    one(engine, first)
    read = engine.stats.tokens_read
    events = one(engine, second)
    assert finish(events).usage.cached_tokens == 300
    assert engine.stats.tokens_read - read == 2
    assert tokens_of(events, Handle(1)) == expected(model, second)[0]
    events = one(engine, third)
    assert finish(events).usage.cached_tokens == 100
    assert tokens_of(events, Handle(2)) == expected(model, third)[0]
    stats = engine.stats
    assert (stats.prefix_lookups, stats.prefix_hits, stats.tokens_cached) == (3, 2, 400)


def test_a_text_whose_numbers_diverge_ends_alone(model: Decoder) -> None:
    engine = engine_of(model)
    (_, good) = one(engine, Request(prompt=prompt(3), max_tokens=0, keep_state=True)), REQUESTS[0]
    state = finish(one(engine, Request(prompt=prompt(3), max_tokens=0, keep_state=True))).state
    assert state is not None
    tensors = {
        n: torch.full_like(x, float("nan"))
        for n, x in state_tensors(state).items()
        if x.is_floating_point()
    }
    broken = with_tensors(state, state_tensors(state) | tensors)
    bad = engine.submit(Request(prompt=(97,), state=broken, max_tokens=5))
    fine = engine.submit(good)
    events = run(engine)
    (error,) = [event for event in events if isinstance(event, ErrorEvent)]
    assert error.handle == bad
    assert "not finite" in error.message
    assert tokens_of(events, fine) == expected(model, good)[0]
    assert engine.stats.texts_failed == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ()}, "prompt has no token to predict from"),
        ({"prompt": (300,)}, "prompt has token 300; ids are from 0 to 256"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias has token -1"),
        ({"logit_bias": {1: float("nan")}}, r"logit_bias of token 1 \(nan\) must be finite"),
        ({"num_samples": 6}, r"num_samples \(6\) must be from 1 to 5"),
        ({"logprobs": 21}, r"logprobs \(21\) must be from 0 to 20"),
        ({"max_tokens": -1}, r"max_tokens \(-1\) must be 0 or more"),
        ({"stop": ("",)}, "has an empty string"),
        ({"marks": (9,)}, r"mark 9 must be from 1 to the prompt's number of tokens \(3\)"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(
    model: Decoder, changes: dict[str, Any], message: str
) -> None:
    engine = engine_of(model)
    with pytest.raises(ValueError, match=message):
        engine.submit(replace(Request(prompt=(1, 2, 3)), **changes))
    assert not engine.busy


def test_states_of_other_models_are_refused(model: Decoder) -> None:
    engine = engine_of(model)
    other = finish(
        one(engine_of(decoder("gru")), Request(prompt=(1,), max_tokens=0, keep_state=True))
    ).state
    with pytest.raises(ValueError, match="the state is of another model: its layers or mixers"):
        engine.submit(Request(prompt=(1,), state=other))
    mine = finish(one(engine, Request(prompt=(1,), max_tokens=0, keep_state=True))).state
    assert mine is not None
    with pytest.raises(ValueError, match="the state has 2 rows and a request one"):
        engine.submit(Request(prompt=(1,), state=select_rows(mine, [0, 0])))
    tensors = {n: x.float() if x.is_floating_point() else x for n, x in state_tensors(mine).items()}
    with pytest.raises(ValueError, match=r"is torch.float32 .* and must be torch.float64"):
        engine.submit(Request(prompt=(1,), state=with_tensors(mine, tensors)))


def test_states_that_grow_have_a_limit_that_is_said() -> None:
    attention = decoder("attention")
    engine = engine_of(attention, max_context=20)
    with pytest.raises(ValueError, match=r"are 21; this model's states grow.* may have 20"):
        engine.submit(Request(prompt=prompt(10), max_tokens=11))
    assert len(tokens_of(one(engine, Request(prompt=prompt(10), max_tokens=10)), Handle(0))) <= 10
    unlimited = engine_of(attention)
    assert unlimited.max_context == 4096
    assert unlimited.stats.pool_bytes > 100 * engine.stats.pool_bytes
    assert engine_of(decoder("retention")).max_context is None
    with pytest.raises(ValueError, match=r"max_context \(99999\) must be at most"):
        engine_of(decoder("hyena"), max_context=99999)


def test_a_growing_cache_shrinks_when_long_texts_have_left() -> None:
    engine = engine_of(decoder("attention"), max_running=3)
    engine.submit(Request(prompt=prompt(90), max_tokens=3))
    engine.submit(Request(prompt=prompt(3), max_tokens=40, sampling=GREEDY))
    for _ in range(22):
        engine.step()
    engine.submit(Request(prompt=prompt(2), max_tokens=5))
    for _ in range(2):
        engine.step()
    leaves = state_tensors(engine._pool._closed())
    assert max(leaf.shape[2] for name, leaf in leaves.items() if name.endswith("k")) < 60
    run(engine)


def test_a_full_queue_refuses_before_any_work(model: Decoder) -> None:
    engine = engine_of(model, queue_size=2)
    for _ in range(2):
        engine.submit(REQUESTS[0])
    with pytest.raises(QueueFull):
        engine.submit(REQUESTS[0])
    run(engine)
    assert engine.stats.requests_finished == 2


def test_grammars_are_followed(model: Decoder) -> None:
    engine = engine_of(model)
    hot = Sampling(seed=1, temperature=1.5)
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99}},
        "required": ["n"],
        "additionalProperties": False,
    }
    for grammar, matches in (
        (engine.grammars.regex("[a-c]{3}-[0-9]+x"), r"[a-c]{3}-[0-9]+x"),
        (engine.grammars.choice(["yes", "no", "né \\"]), r"yes|no|né \\"),
        (engine.grammars.json_schema(schema), r'(?s)\s*\{\s*"n"\s*:\s*-?\d+\s*\}\s*'),
    ):
        request = Request(
            prompt=prompt(5),
            grammar=grammar,
            max_tokens=200,
            sampling=hot,
            num_samples=3,
            logit_bias={ord("x"): 2.0, ord("}"): 9.0, 10: -1e4, 32: -1e4, 9: -1e4, 13: -1e4},
        )
        events = one(engine, request)
        for sample in range(3):
            text = "".join(
                event.text
                for event in events
                if isinstance(event, TokenEvent | FinishEvent) and event.sample == sample
            )
            assert re.fullmatch(matches, text), text
        assert {e.finish_reason for e in events if isinstance(e, FinishEvent)} == {"stop"}


def test_grammars_that_are_wrong_are_refused(model: Decoder) -> None:
    grammars = engine_of(model).grammars
    with pytest.raises(ValueError, match="regex is not one that can be followed"):
        grammars.regex("(")
    with pytest.raises(ValueError, match="json_schema is not one that can be followed"):
        grammars.json_schema({"type": "nonsense"})
    with pytest.raises(ValueError, match="must be at least one text, none empty"):
        grammars.choice([])
    with pytest.raises(ValueError, match="lark is not one that can be followed"):
        grammars.lark("start: (")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_running": 0}, r"max_running \(0\) must be at least 1"),
        ({"prefill_budget": 4}, r"prefill_budget \(4\) must be at least max_running \(5\)"),
        ({"prefix_cache_bytes": -1}, "must not be negative"),
    ],
)
def test_configs_outside_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(EngineConfig(**SMALL), **changes)
