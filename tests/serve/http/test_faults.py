"""What goes wrong between a request and its answer, and must leave nothing behind."""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from http_server import serving, wait_until
from retnet.serve.sessions import SessionError, Turn, give

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
TEXT = {"model": "tiny", "prompt": "a", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server that pings often, and that a page elsewhere may ask."""
    folder = tmp_path_factory.mktemp("sessions")
    origins = ("http://page.example",)
    with serving(folder, limits={"ping_s": 0.05, "prompts": 8}, origins=origins, queue_size=4) as s:
        yield s


def post(server: SimpleNamespace, path: str, **body: Any) -> requests.Response:
    return requests.post(f"{server.url}/v1/{path}", json=body, timeout=30)


def frames(reply: requests.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: {")]


def metrics(server: SimpleNamespace) -> str:
    return requests.get(f"{server.url}/metrics", timeout=10).text


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"prompt": [999]}, 400),
        ({"prompt": ["a", "b"]}, 400),
        ({"max_tokens": 10**6}, 400),
        ({"n": 2}, 400),
        ({"session": "a/b"}, 400),
        ({"model": "other"}, 404),
        ({"structured_outputs": {"regex": "("}}, 400),
        ({"structured_outputs": {"choice": ["y"]}, "logit_bias": {"121": -100.0}}, 200),
    ],
    ids=str,
)
def test_a_session_is_free_after_every_refusal(
    own: SimpleNamespace, changes: dict, status: int
) -> None:
    before = own.engine.stats.tokens_read
    assert post(own, "completions", **{**TEXT, "session": "s", **changes}).status_code == status
    assert not own.context.busy_sessions
    if status != 200:
        assert own.engine.stats.tokens_read == before  # refused before any work


def test_a_session_is_free_after_a_text_or_its_commit_has_failed(own: SimpleNamespace) -> None:
    store = own.context.sessions
    for stream in (False, True):

        def fail(*_: object) -> int:
            raise SessionError("no room")

        store.commit = fail
        reply = post(own, "completions", **TEXT, session="t", stream=stream)
        del store.commit
        told = frames(reply)[-1] if stream else reply.json()
        assert told["error"]["message"] == "no room"
        assert not own.context.busy_sessions
        assert requests.get(f"{own.url}/v1/sessions/t", timeout=10).status_code == 404


def test_a_session_that_expires_under_a_request_is_gone_and_says_so(own: SimpleNamespace) -> None:
    store = own.context.sessions
    commit = store.commit
    assert post(own, "completions", **TEXT, session="late").status_code == 200

    def too_late(*given: Any) -> int:
        store.delete("late", "")
        return commit(*given)

    store.commit = too_late
    reply = post(own, "completions", **TEXT, session="late")
    del store.commit
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "session_not_found")
    assert not own.context.busy_sessions


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_during_the_commit_leaves_the_session_whole(
    own: SimpleNamespace, stream: bool
) -> None:
    """Others could begin from the turn before while this one was being written."""
    store, name = own.context.sessions, f"left-{stream}"
    begun, go_on = threading.Event(), threading.Event()
    commit = store.commit

    def slowly(*given: Any) -> int:
        begun.set()
        assert go_on.wait(10)
        return commit(*given)

    store.commit = slowly
    try:
        body = json.dumps({**TEXT, "session": name, "stream": stream}).encode()
        with socket.create_connection(own.url.removeprefix("http://").split(":")) as client:
            head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert begun.wait(10)
        counted = 'retnet_http_requests_total{method="POST",route="/v1/completions",status='
        status = "200" if stream else "499"
        assert wait_until(lambda: f'{counted}"{status}"' in metrics(own))
        busy = post(own, "completions", **TEXT, session=name)
        assert (busy.status_code, busy.json()["error"]["code"]) == (409, "session_busy")
    finally:
        go_on.set()
        del store.commit
    assert wait_until(lambda: not own.context.busy_sessions)
    assert post(own, "completions", **TEXT, session=name).status_code == 200


def test_what_retnet_chat_has_not_read_is_read_first(own: SimpleNamespace) -> None:
    """A session of the terminal went on without the last of its answer."""
    whole = post(own, "completions", **{**TEXT, "prompt": "Once upon a time"}).json()
    begun = post(own, "completions", **{**TEXT, "prompt": "Once", "max_tokens": 0}, session="term")
    version = begun.json()["session"]["version"]
    store = own.context.sessions
    unread = {"tokens": list(b" up"), "text": "on", "turn": 1}
    state = store.get("term", "").state
    turn = Turn(state=state, tokens=[], meta={"unread": unread})
    store.commit("term", "", turn, version)
    done = post(own, "completions", **{**TEXT, "prompt": " a time"}, session="term").json()
    assert done["choices"][0]["text"] == whole["choices"][0]["text"]
    assert done["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    text = base64.b64encode(give(state, turn.meta, own.context.identity)).decode()
    usage = post(own, "chat/completions", **CHAT, state=text).json()["usage"]
    new = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    assert new == len(" upon\n\nUser:\nx\n\nAssistant:\n")


@pytest.mark.parametrize(
    "meta",
    [{"tail": 5}, {"unread": 7}, {"unread": {"tokens": ["a"]}}, {"unread": {"tokens": [9999]}}],
    ids=str,
)
def test_metadata_that_are_made_up_are_refused(own: SimpleNamespace, meta: dict) -> None:
    post(own, "completions", **TEXT, session="meta")
    state = own.context.sessions.get("meta", "").state
    text = base64.b64encode(give(state, meta, own.context.identity)).decode()
    assert post(own, "chat/completions", **CHAT, state=text).status_code == 400


def test_a_text_that_is_no_unicode_leaves_no_tail(own: SimpleNamespace) -> None:
    """The whole of it was taken for what follows the answer."""
    odd = {str(token): 100.0 for token in (0xFF, 0xC3)}
    reply = post(own, "completions", **TEXT, session="odd", logit_bias=odd)
    assert "\ufffd" in reply.json()["choices"][0]["text"]
    assert own.context.sessions.get("odd", "").meta["tail"] == ""


def test_logprobs_of_a_character_of_many_bytes_come_with_the_character(
    own: SimpleNamespace,
) -> None:
    more = {"structured_outputs": {"choice": ["né€😀"]}, "max_tokens": 20, "logprobs": True}
    told = frames(post(own, "chat/completions", **{**CHAT, **more}, stream=True))
    pieces = [
        (bytes(b for e in choice["logprobs"]["content"] for b in e["bytes"]).decode(), text)
        for frame in told
        for choice in frame["choices"]
        if (text := choice["delta"].get("content"))
    ]
    assert pieces == [(c, c) for c in "né€😀"]
    whole = post(own, "completions", **{**TEXT, **more, "logprobs": 0}).json()["choices"][0]
    assert whole["logprobs"]["text_offset"] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]


def test_no_part_of_a_stop_string_is_streamed(own: SimpleNamespace) -> None:
    more = {"structured_outputs": {"choice": ["abcdef"]}, "max_tokens": 20, "stream": True}
    for stop, pieces in ((["cdX", "de"], ["a", "b", "c"]), (["zz"], list("abcdef"))):
        told = frames(post(own, "completions", **{**TEXT, **more}, stop=stop))
        assert [t for frame in told if (t := frame["choices"][0]["text"])] == pieces


def test_a_silent_stream_is_kept_open_with_comments(own: SimpleNamespace) -> None:
    own.engine.step, step = lambda: [], own.engine.step
    try:
        with requests.post(
            f"{own.url}/v1/completions", json={**TEXT, "stream": True}, stream=True, timeout=30
        ) as reply:
            lines = (line for line in reply.iter_lines() if line)
            assert [next(lines), next(lines)] == [b": ping"] * 2
            own.engine.step = step
            own.context.worker._notify()
            assert list(lines)[-1] == b"data: [DONE]"
    finally:
        own.engine.step = step


def test_a_page_elsewhere_may_ask_and_read_what_it_needs(own: SimpleNamespace) -> None:
    page = {"Origin": "http://page.example"}
    asks = {**page, "Access-Control-Request-Method": "POST"}
    asked = requests.options(f"{own.url}/v1/completions", headers=asks, timeout=10)
    assert asked.headers["access-control-allow-origin"] == "http://page.example"
    found = requests.get(f"{own.url}/v1/models", headers=page, timeout=10)
    assert "X-Request-Id" in found.headers["access-control-expose-headers"]
    other = requests.get(
        f"{own.url}/v1/models", headers={"Origin": "http://other.example"}, timeout=10
    )
    assert "access-control-allow-origin" not in other.headers


def test_methods_that_a_client_makes_up_are_counted_together(own: SimpleNamespace) -> None:
    """Each made a counter that was never forgotten, also without a key."""
    for number in range(3):
        requests.request(f"ODD{number}", f"{own.url}/health", timeout=10)
    lines = [line for line in metrics(own).splitlines() if 'method="ODD' in line]
    assert lines == []
    assert 'method="other"' in metrics(own)


@pytest.mark.parametrize("length", ["9" * 19, "9" * 5000])
def test_a_length_that_is_no_length_is_refused(own: SimpleNamespace, length: str) -> None:
    with socket.create_connection(own.url.removeprefix("http://").split(":")) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(100).split()[1] in (b"400", b"413")


def test_headers_without_an_end_are_refused(own: SimpleNamespace) -> None:
    assert own.server.config.http_protocol_class.__name__ == "H11Protocol"
    with socket.create_connection(own.url.removeprefix("http://").split(":")) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 100_000)
        assert client.recv(100).startswith(b"HTTP/1.1 400")


def test_more_prompts_than_can_wait_are_refused_for_good(own: SimpleNamespace) -> None:
    """A full queue says when to come back, but these never had a place."""
    reply = post(own, "completions", **{**TEXT, "prompt": ["a"] * 5})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")


def test_the_field_that_the_client_used_is_named(own: SimpleNamespace) -> None:
    body = {k: v for k, v in CHAT.items() if k != "max_tokens"}
    reply = post(own, "chat/completions", **body, max_completion_tokens=10**6)
    assert reply.json()["error"]["param"] == "max_completion_tokens"


def test_a_session_may_be_larger_than_another_body(tmp_path: Path) -> None:
    with serving(tmp_path, limits={"body_bytes": 5000}) as small:
        post(small, "completions", **TEXT, session="a")
        data = requests.get(f"{small.url}/v1/sessions/a/state", timeout=10).content
        assert len(data) > 100_000
        url = f"{small.url}/v1/sessions/b/state"
        assert requests.put(url, data=data, timeout=10).status_code == 200
