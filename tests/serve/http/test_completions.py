"""`/v1/completions` through the client of OpenAI."""

import json
from types import SimpleNamespace

import openai
import pytest
import requests
from openai.types import Completion

from retnet.data import Tokenizer
from retnet.model import Sampling, generate

GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 12}


def test_a_completion_is_what_generate_writes(server: SimpleNamespace) -> None:
    done = server.client.completions.create(prompt="Once", **GREEDY)
    sampling = Sampling(temperature=0.0)
    (alone,) = generate(
        server.engine.model, Tokenizer.bytes(), ["Once"], max_tokens=12, sampling=sampling
    )
    choice = done.choices[0]
    assert choice.text == alone[0].text
    assert choice.finish_reason == "length"
    assert (done.object, done.model) == ("text_completion", "tiny")
    assert done.usage.prompt_tokens == 5  # BOS among them
    assert (done.usage.completion_tokens, done.usage.total_tokens) == (12, 17)


def test_a_stream_says_the_same_in_frames_that_are_valid(server: SimpleNamespace) -> None:
    whole = server.client.completions.create(prompt="Once", **GREEDY)
    body = {"prompt": "Once", "stream": True, "stream_options": {"include_usage": True}, **GREEDY}
    reply = requests.post(f"{server.url}/v1/completions", json=body, timeout=30)
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    frames = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    for content in frames[:-1]:
        (choice,) = content["choices"]
        told = {**choice, "finish_reason": choice["finish_reason"] or "stop"}  # null until the end
        Completion.model_validate({**content, "choices": [told]})
        assert content["usage"] is None
    assert frames[-1]["choices"] == []
    assert frames[-1]["usage"]["completion_tokens"] == 12
    assert "".join(f["choices"][0]["text"] for f in frames[:-1]) == whole.choices[0].text
    assert [f["choices"][0]["finish_reason"] for f in frames[:-1]].count("length") == 1
    assert len({f["id"] for f in frames}) == 1


def test_several_prompts_and_samples_are_numbered(server: SimpleNamespace) -> None:
    done = server.client.completions.create(
        model="tiny", prompt=["ab", "cd"], n=2, seed=5, max_tokens=4
    )
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    alone = server.client.completions.create(
        model="tiny", prompt=[256, 99, 100], n=2, seed=5, max_tokens=4
    )
    assert [c.text for c in done.choices[2:]] == [c.text for c in alone.choices]
    assert done.usage.prompt_tokens == 6
    assert done.usage.completion_tokens <= 16


def test_echo_tells_how_likely_the_prompt_is(server: SimpleNamespace) -> None:
    done = server.client.completions.create(
        model="tiny", prompt="Once", echo=True, logprobs=2, max_tokens=1, temperature=0
    )
    told = done.choices[0].logprobs
    assert done.choices[0].text.startswith("Once")
    assert told.tokens[:5] == ["<|bos|>", "O", "n", "c", "e"]
    assert told.token_logprobs[0] is None
    assert all(value <= 0 for value in told.token_logprobs[1:])
    assert told.text_offset[:5] == [0, 0, 1, 2, 3]
    assert len(told.top_logprobs[1]) == 2


def test_a_text_ends_before_a_stop_string_and_its_logprobs_too(server: SimpleNamespace) -> None:
    free = server.client.completions.create(prompt="Once", logprobs=0, **GREEDY)
    stop = free.choices[0].text[3:6]
    done = server.client.completions.create(prompt="Once", stop=[stop], logprobs=0, **GREEDY)
    choice = done.choices[0]
    assert choice.text == free.choices[0].text.split(stop)[0]
    assert choice.finish_reason == "stop"
    assert all(offset < len(choice.text) for offset in choice.logprobs.text_offset)


def test_structured_outputs_are_followed(server: SimpleNamespace) -> None:
    done = server.client.completions.create(
        model="tiny",
        prompt="x",
        max_tokens=20,
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
    )
    assert done.choices[0].text in ("yes", "no")
    assert done.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"temperature": 3}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"n": True}, 400, "n"),
        ({"n": 100}, 400, "n"),
        ({"colour": "red"}, 400, "colour"),
        ({"prompt": [256, "a"]}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [999]}, 400, "prompt"),
        ({"prompt": None}, 400, "prompt"),
        ({"max_tokens": 10**6}, 400, "max_tokens"),
        ({"logprobs": 21}, 400, "logprobs"),
        ({"logit_bias": {"a": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"900": 1}}, 400, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"stop": ""}, 400, "stop"),
        ({"best_of": 3}, 400, "best_of"),
        ({"structured_outputs": {"regex": "("}}, 400, "structured_outputs"),
        ({"structured_outputs": {}}, 400, "structured_outputs"),
        ({"model": "other"}, 404, "model"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(
    server: SimpleNamespace, changes: dict, status: int, param: str
) -> None:
    body = {"model": "tiny", "prompt": "a", **changes}
    reply = requests.post(f"{server.url}/v1/completions", json=body, timeout=30)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] is not None
    assert error["param"].startswith(param)


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[1]",
        b"",
        b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "a", "temperature": 1e999}',
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "prompt": "a", "\\ud800": 1}',
        b"[" * 100_000,
        b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
    ],
    ids=lambda data: repr(data[:60]),
)
def test_what_is_no_body_is_refused(server: SimpleNamespace, data: bytes) -> None:
    reply = requests.post(
        f"{server.url}/v1/completions",
        data=data,
        headers={"content-type": "application/json"},
        timeout=30,
    )
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_errors_have_the_classes_of_the_client(server: SimpleNamespace) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        server.client.completions.create(model="other", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        server.client.completions.create(model="tiny", prompt="a", temperature=9)
