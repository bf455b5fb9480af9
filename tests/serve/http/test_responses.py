"""`/v1/responses` through the client of OpenAI, whose types judge every event."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import requests
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from http_server import serving, wait_until

GREEDY = {"model": "tiny", "temperature": 0, "max_output_tokens": 8}
NEW = "\n\nUser:\n{}\n\nAssistant:\n"
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def say(server: SimpleNamespace, said: Any, before: str | None = None, **changes: Any) -> Any:
    more = {} if before is None else {"previous_response_id": before}
    return server.client.responses.create(input=said, **{**GREEDY, **more, **changes})


def events(server: SimpleNamespace, **body: Any) -> list[dict[str, Any]]:
    """Of a stream, each valid and with its name."""
    body = {**GREEDY, "input": "one", "stream": True, **body}
    reply = requests.post(f"{server.url}/v1/responses", json=body, timeout=30)
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in reply.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENTS.validate_python(event)
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def test_a_response_is_what_a_chat_answers(server: SimpleNamespace) -> None:
    done = say(server, "one", instructions="Be brief.", metadata={"a": "b"}, user="me")
    Response.model_validate(done.model_dump())
    chat = server.client.chat.completions.create(
        model="tiny",
        temperature=0,
        max_tokens=8,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}],
    )
    assert done.output_text == chat.choices[0].message.content
    assert (done.status, done.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert done.output[0].status == "incomplete"
    assert (done.store, done.metadata, done.instructions) == (True, {"a": "b"}, "Be brief.")
    assert done.usage.input_tokens == chat.usage.prompt_tokens
    assert done.usage.output_tokens == 8
    assert done.usage.total_tokens == done.usage.input_tokens + 8
    short = say(server, "one", extra_body={"structured_outputs": {"choice": ["yes"]}})
    assert (short.status, short.output_text, short.incomplete_details) == ("completed", "yes", None)


def test_events_come_in_the_order_of_openai_and_agree_with_the_whole(
    server: SimpleNamespace,
) -> None:
    whole = say(server, "one", top_logprobs=2, include=["message.output_text.logprobs"])
    found = events(server, top_logprobs=2, include=["message.output_text.logprobs"])
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    last = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert kinds[-4:] == last
    assert set(kinds[4:-4]) == {"output_text.delta"}
    text = "".join(event["delta"] for event in found[4:-4])
    response = found[-1]["response"]
    assert text == whole.output_text == found[-4]["text"] == found[-3]["part"]["text"]
    assert response["output"] == [found[-2]["item"]]
    assert {event["item_id"] for event in found[3:-2]} == {found[2]["item"]["id"]}
    told = [entry for event in found[4:-4] for entry in event["logprobs"]]
    assert told == response["output"][0]["content"][0]["logprobs"]
    assert [len(entry["top_logprobs"]) for entry in told] == [2] * 8
    assert response["usage"] == whole.usage.model_dump(exclude_none=True)
    assert server.client.responses.retrieve(response["id"]).output_text == text


def test_a_response_that_ends_by_itself_is_completed(server: SimpleNamespace) -> None:
    found = events(server, structured_outputs={"choice": ["yes"]})
    assert found[-1]["type"] == "response.completed"
    assert found[-1]["response"]["completed_at"] >= found[0]["response"]["created_at"]


def test_branches_of_one_response_all_work_and_cost_only_what_is_new(
    server: SimpleNamespace,
) -> None:
    first = say(server, "one")
    branches = []
    for text in ("two", "other", "two"):
        before = server.engine.stats.tokens_read
        branch = say(server, text, first.id)
        details = branch.usage.input_tokens_details
        new = branch.usage.input_tokens - details.cached_tokens
        assert server.engine.stats.tokens_read - before == new == len(NEW.format(text))
        assert details.cached_tokens == first.usage.total_tokens
        branches.append(branch)
    assert branches[0].output_text == branches[2].output_text
    assert len({branch.id for branch in branches}) == 3
    server.client.responses.delete(first.id)  # and its branches stay
    third = say(server, "three", branches[0].id)
    history = [
        {"role": role, "content": text}
        for asked, told in (("one", first), ("two", branches[0]))
        for role, text in (("user", asked), ("assistant", told.output_text))
    ]
    whole = say(server, [*history, {"role": "user", "content": "three"}], store=False)
    assert third.output_text == whole.output_text


def test_two_go_on_from_one_response_at_the_same_time(server: SimpleNamespace) -> None:
    first = say(server, "one")

    async def both() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            asked = (
                client.responses.create(input=text, previous_response_id=first.id, **GREEDY)
                for text in ("a", "b")
            )
            return await asyncio.gather(*asked)

    for done, text in zip(asyncio.run(both()), "ab", strict=True):
        assert done.output_text == say(server, text, first.id).output_text


def test_instructions_that_the_state_has_read_are_not_read_again(server: SimpleNamespace) -> None:
    first = say(server, "one", instructions="Be brief.")
    new = []
    for instructions in ("Be brief.", None, "Be long."):
        usage = say(server, "two", first.id, instructions=instructions).usage
        new.append(usage.input_tokens - usage.input_tokens_details.cached_tokens)
    plain = len(NEW.format("two"))
    assert new == [plain, plain, plain + len("\n\nSystem:\nBe long.")]


def test_a_response_outlives_the_server_and_is_no_session(tmp_path: Path) -> None:
    with serving(tmp_path, keys=("alpha", "beta")) as server:
        first = say(server, "one")
        expected = say(server, "two", first.id).output_text
        kept = server.client.responses.retrieve(first.id)
        assert kept.model_dump() == first.model_dump()
        url = f"{server.url}/v1/"
        headers, beta = ({"Authorization": f"Bearer {key}"} for key in ("alpha", "beta"))
        assert requests.get(f"{url}sessions", headers=headers, timeout=10).json()["data"] == []
        found = requests.get(f"{url}sessions/{first.id}", headers=headers, timeout=10)
        assert found.status_code == 404
        beta = {"Authorization": "Bearer beta"}
        assert (
            requests.get(f"{url}responses/{first.id}", headers=beta, timeout=10).status_code == 404
        )
    with serving(tmp_path, keys=("alpha", "beta")) as server:
        assert say(server, "two", first.id).output_text == expected
        server.client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError) as gone:
            server.client.responses.retrieve(first.id)
        assert gone.value.code == "response_not_found"
        with pytest.raises(openai.BadRequestError) as lost:
            say(server, "two", first.id)
        assert lost.value.code == "previous_response_not_found"


def test_without_a_folder_responses_are_not_kept() -> None:
    with serving() as server:
        done = say(server, "one")
        assert done.store is False
        asked: dict[str, dict[str, Any]] = {
            "store": {"store": True},
            "previous_response_id": {"before": done.id},
        }
        for field, changes in asked.items():
            with pytest.raises(openai.BadRequestError, match="--data-dir") as error:
                say(server, "one", **changes)
            assert error.value.param == field
        with pytest.raises(openai.BadRequestError, match="--data-dir"):
            server.client.responses.retrieve(done.id)


def test_what_is_not_stored_is_gone(server: SimpleNamespace) -> None:
    done = say(server, "one", store=False)
    assert done.store is False
    with pytest.raises(openai.NotFoundError):
        server.client.responses.retrieve(done.id)


def test_json_is_written_as_its_schema_says(server: SimpleNamespace) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "a", "schema": schema, "strict": True}
    more = {"logit_bias": {"32": -100, "10": -100, "9": -100, "13": -100}}
    done = say(server, "x", text={"format": form}, max_output_tokens=60, extra_body=more)
    assert json.loads(done.output_text)["a"] in (1, 2)
    assert done.text.format.type == "json_schema"
    assert done.text.format.schema_ == schema


def test_a_response_that_fails_says_so_in_its_last_event(server: SimpleNamespace) -> None:
    server.engine.step, step = lambda: [], server.engine.step
    stream = server.client.responses.create(input="one", stream=True, **GREEDY)
    try:
        next(iter(stream))
        server.context.worker.abandon("the server is shutting down")
        (*_, last) = stream
    finally:
        server.engine.step = step
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert last.response.error.code == "server_error"
    assert "shutting down" in last.response.error.message
    EVENTS.validate_python(last.model_dump())
    assert wait_until(lambda: not server.engine.busy)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"background": True}, "background"),
        ({"conversation": "a"}, "conversation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"truncation": "always"}, "truncation"),
        ({"stream_options": {}}, "stream_options"),
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
        ({"session": "a"}, "session"),
        ({"n": 2}, "n"),
        ({"temperature": 3}, "temperature"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(server: SimpleNamespace, changes: dict, param: str) -> None:
    body = {"model": "tiny", "input": "a", **changes}
    reply = requests.post(f"{server.url}/v1/responses", json=body, timeout=30)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith(param)


def test_answers_of_the_client_go_in_as_they_came_out(server: SimpleNamespace) -> None:
    first = say(server, "one")
    asked = [{"role": "user", "content": "one"}, *first.output, {"role": "user", "content": "two"}]
    done = say(server, asked)
    assert done.output_text == say(server, "two", first.id).output_text


def test_the_clients_own_helpers_follow_the_stream(server: SimpleNamespace) -> None:
    with server.client.responses.stream(input="one", **GREEDY) as stream:
        text = "".join(
            event.delta for event in stream if event.type == "response.output_text.delta"
        )
    assert text == say(server, "one").output_text
