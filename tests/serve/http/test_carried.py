"""States that clients keep themselves: `return_state` and `state`."""

import base64
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import requests

from http_server import serving

GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 8}
TAKE = {"return_state": True}


@pytest.fixture(scope="module")
def plain() -> Iterator[SimpleNamespace]:
    """A server that keeps nothing."""
    with serving() as running:
        yield running


def chat(server: SimpleNamespace, text: str, **extra: Any) -> Any:
    stream = extra.pop("stream", False)
    return server.client.chat.completions.create(
        messages=[{"role": "user", "content": text}], stream=stream, extra_body=extra, **GREEDY
    )


def refused(server: SimpleNamespace, **body: Any) -> dict[str, Any]:
    reply = requests.post(
        f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "a", **body}, timeout=30
    )
    assert reply.status_code == 400
    return reply.json()["error"]


def test_a_chat_goes_on_from_the_state_that_its_client_kept(plain: SimpleNamespace) -> None:
    first = chat(plain, "one", **TAKE)
    before = plain.engine.stats.tokens_read
    second = chat(plain, "two", state=first.state, **TAKE)
    usage = second.usage
    new = usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens
    assert plain.engine.stats.tokens_read - before == new == len("\n\nUser:\ntwo\n\nAssistant:\n")
    assert usage.prompt_tokens_details.cached_tokens == first.usage.total_tokens
    answers = [m for c in (first, second) for m in (c.choices[0].message.content,)]
    history = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": "two"},
    ]
    whole = plain.client.chat.completions.create(messages=history, **GREEDY)
    assert whole.choices[0].message.content == answers[1]
    assert len(second.state) == len(first.state)  # a longer text is no larger


def test_in_a_stream_the_state_comes_with_the_end(plain: SimpleNamespace) -> None:
    whole = chat(plain, "one", **TAKE)
    chunks = list(chat(plain, "one", stream=True, **TAKE))
    assert [hasattr(chunk, "state") for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].state[-1000:] == whole.state[-1000:]  # its header has no order
    body = {"prompt": "a", "stream": True, "max_tokens": 2, "model": "tiny", **TAKE}
    reply = requests.post(f"{plain.url}/v1/completions", json=body, timeout=30)
    frames = [json.loads(line[6:]) for line in reply.text.split("\n\n")[:-2]]
    assert [frame for frame in frames if "state" in frame] == frames[-1:]


def test_a_completion_forks_from_one_state(plain: SimpleNamespace) -> None:
    create = plain.client.completions.create
    whole = create(prompt="Once upon", **GREEDY)
    begun = create(prompt="Once", extra_body=TAKE, **{**GREEDY, "max_tokens": 0})
    done = create(prompt=" upon", n=2, extra_body={"state": begun.state}, **GREEDY)
    assert [choice.text for choice in done.choices] == [whole.choices[0].text] * 2
    several = create(prompt=[" upon", "!"], extra_body={"state": begun.state}, **GREEDY)
    assert several.choices[0].text == whole.choices[0].text
    assert several.usage.prompt_tokens_details.cached_tokens >= 2 * begun.usage.total_tokens


def test_what_cannot_be_carried_is_refused_by_its_name(plain: SimpleNamespace) -> None:
    state = chat(plain, "one", **TAKE).state
    data = bytearray(base64.b64decode(state))
    data[-1] ^= 1
    for wrong, why in (
        (base64.b64encode(data).decode(), "not as it was written"),
        (base64.b64encode(data[:-9]).decode(), "no whole safetensors file"),
        ("AAAA", "no whole safetensors file"),
        (state[:-1], "base64"),
        ("é" * 8, "base64"),
        ("A" * (4 << 20), "characters"),
    ):
        error = refused(plain, state=wrong)
        assert error["param"] == "state"
        assert why in error["message"]
    assert refused(plain, state="")["param"] == "state"
    assert refused(plain, n=2, **TAKE)["param"] == "n"
    assert refused(plain, prompt=["a", "b"], **TAKE)["param"] == "prompt"
    assert refused(plain, session="s", **TAKE)["param"] == "return_state"
    assert refused(plain, session="s", state=state)["param"] == "state"


def test_a_state_of_another_model_is_refused(plain: SimpleNamespace) -> None:
    state = chat(plain, "one", **TAKE).state
    plain.context.identity, own = (
        plain.context.identity._replace(fingerprint="0" * 32),
        plain.context.identity,
    )
    try:
        error = refused(plain, state=state)
    finally:
        plain.context.identity = own
    assert (error["param"], error["code"]) == ("state", "state_refused")
    assert "other weights" in error["message"]


def test_a_state_may_be_too_large_for_a_server() -> None:
    with serving(limits={"state_bytes": 1000}) as small:
        with pytest.raises(openai.BadRequestError, match="--max-state") as error:
            chat(small, "one", **TAKE)
        assert (error.value.param, error.value.code) == ("return_state", "state_too_large")
        small.context.identity = None
        assert refused(small, **TAKE)["param"] == "return_state"
