"""`/v1/chat/completions` through the client of OpenAI."""

import json
from types import SimpleNamespace

import openai
import pytest
import requests
from openai.types.chat import ChatCompletionChunk

HELLO = [{"role": "user", "content": "Hello"}]
GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 10}


def test_an_answer_and_its_stream_agree(server: SimpleNamespace) -> None:
    whole = server.client.chat.completions.create(messages=HELLO, **GREEDY)
    message = whole.choices[0].message
    assert (whole.object, message.role) == ("chat.completion", "assistant")
    stream = server.client.chat.completions.create(messages=HELLO, stream=True, **GREEDY)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert {(chunk.id, chunk.created) for chunk in chunks} == {(chunks[0].id, chunks[0].created)}


def test_frames_are_exactly_those_of_openai(server: SimpleNamespace) -> None:
    body = {
        "messages": HELLO,
        "stream": True,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "stream_options": {"include_usage": True},
        **GREEDY,
    }
    reply = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    frames = [json.loads(line) for line in lines[:-1]]
    for content in frames:
        ChatCompletionChunk.model_validate(content)
    assert [f["choices"][0]["delta"].get("role") for f in frames[:2]] == ["assistant"] * 2
    assert frames[-1]["choices"] == []
    assert frames[-1]["usage"]["completion_tokens"] == 20
    for index in (0, 1):
        own = [f["choices"][0] for f in frames[:-1] if f["choices"][0]["index"] == index]
        text = "".join(choice["delta"].get("content", "") for choice in own)
        told = [entry for choice in own for entry in (choice["logprobs"] or {}).get("content", [])]
        data = bytes(byte for entry in told for byte in entry["bytes"])
        assert data.decode(errors="replace") == text
        assert own[-1]["delta"] == {}


def test_json_is_answered_where_it_is_asked_for(server: SimpleNamespace) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    done = server.client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=60,
        logit_bias={"32": -100, "10": -100, "9": -100, "13": -100},  # no endless white space
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert json.loads(done.choices[0].message.content)["a"] in (1, 2)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": []}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(server: SimpleNamespace, changes: dict, param: str) -> None:
    body = {"model": "tiny", "messages": HELLO, **changes}
    with pytest.raises(openai.BadRequestError) as error:
        server.client.post("/chat/completions", body=body, cast_to=object)
    assert error.value.param == param


def test_the_log_has_no_text_of_prompts(
    server: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    secret = [{"role": "user", "content": "my secret word"}]
    server.client.chat.completions.create(messages=secret, **GREEDY)
    lines = [r.getMessage() for r in caplog.records if r.name == "retnet.serve"]
    line = json.loads(lines[-1])
    assert (line["route"], line["status"]) == ("/v1/chat/completions", 200)
    assert line["completion_tokens"] == 10
    assert "secret" not in caplog.text
