"""Keys, full queues, clients that leave, bodies that are too large, and the end."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
import requests

from http_server import serving, wait_until
from retnet.serve.http import Keys
from retnet.serve.http.server import is_loopback, serve

ENDLESS = {"logit_bias": {"256": -100}}
"""No end of a document."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Two keys, one place, one that waits."""
    folder = tmp_path_factory.mktemp("sessions")
    limits = {"body_bytes": 5000, "state_bytes": 1, "max_tokens": 1_000_000, "body_s": 1.0}
    with serving(folder, keys=("alpha", "beta"), limits=limits, max_running=1, queue_size=1) as s:
        yield s


def ask(**changes: object) -> dict:
    return {
        "model": "tiny",
        "prompt": "a",
        "max_tokens": 1_000_000,
        "stream": True,
        **ENDLESS,
        **changes,
    }


@pytest.mark.parametrize("header", [None, "", "alpha", "Bearer gamma", "Bearer", "Basic alpha"])
def test_without_a_key_nothing_but_health_is_told(
    guarded: SimpleNamespace, header: str | None
) -> None:
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        reply = requests.get(guarded.url + path, headers=headers, timeout=10)
        assert reply.status_code == 401
        assert reply.json()["error"]["code"] == "invalid_api_key"
    assert requests.get(f"{guarded.url}/health", timeout=10).status_code == 200


def test_each_key_sees_its_own_sessions_only(guarded: SimpleNamespace) -> None:
    guarded.client.completions.create(
        model="tiny", prompt="a", max_tokens=2, extra_body={"session": "mine"}
    )
    for key, names in (("alpha", ["mine"]), ("beta", [])):
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{guarded.url}/v1/sessions"
        found = requests.get(url, headers=headers, timeout=10).json()["data"]
        assert [one["name"] for one in found] == names
        assert requests.get(f"{url}/mine", headers=headers, timeout=10).status_code == (
            200 if names else 404
        )


def test_a_client_that_leaves_frees_its_place_and_a_full_queue_says_when(
    guarded: SimpleNamespace,
) -> None:
    first = guarded.client.completions.create(**ask())
    next(iter(first))
    second = socket.create_connection(guarded.url.removeprefix("http://").split(":"))
    body = json.dumps(ask(stream=False)).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer alpha\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    second.sendall(head.encode() + body)
    assert wait_until(lambda: guarded.engine.stats.waiting == 1)
    with pytest.raises(openai.RateLimitError) as full:
        guarded.client.completions.create(**ask())
    assert int(full.value.response.headers["retry-after"]) >= 1
    assert full.value.code == "queue_full"
    assert guarded.engine.stats.rows == 1
    first.close()
    assert wait_until(lambda: guarded.engine.stats.waiting == 0)  # the second has its place
    second.close()
    assert wait_until(lambda: not guarded.engine.busy)
    assert guarded.context.worker.num_requests == 0
    assert guarded.engine.stats.requests_cancelled == 2


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(guarded: SimpleNamespace, chunked: bool) -> None:
    data = json.dumps(ask(prompt="a" * 6000)).encode()
    reply = requests.post(
        f"{guarded.url}/v1/completions",
        data=iter([data[:3000], data[3000:]]) if chunked else data,
        headers={"Authorization": "Bearer alpha", "Content-Type": "application/json"},
        timeout=10,
    )
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"


def test_a_body_that_does_not_come_is_not_waited_for(guarded: SimpleNamespace) -> None:
    with socket.create_connection(guarded.url.removeprefix("http://").split(":")) as slow:
        slow.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer alpha\r\n"
            b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        )
        slow.settimeout(10)
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_the_request_id_is_the_clients_or_a_new_one(guarded: SimpleNamespace) -> None:
    url = f"{guarded.url}/health"
    mine = requests.get(url, headers={"X-Request-Id": "abc-1"}, timeout=10)
    assert mine.headers["x-request-id"] == "abc-1"
    odd = requests.get(url, headers={"X-Request-Id": 'a"b'}, timeout=10)
    assert odd.headers["x-request-id"].startswith("req-")


def test_what_runs_at_the_end_of_the_grace_is_told(tmp_path: Path) -> None:
    with serving(tmp_path, limits={"max_tokens": 1_000_000}) as running:
        running.server._grace_s = 0.3
        stream = running.client.completions.create(**ask())
        next(iter(stream))
        running.server.handle_exit  # noqa: B018  (uvicorn's own is not what ends us)
        running.server._end(15, None)
        with pytest.raises(openai.APIError, match="shutting down"):
            for _ in stream:
                pass
    assert running.server.started


def test_without_keys_only_this_machine_may_ask(guarded: SimpleNamespace) -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    with pytest.raises(ValueError, match="--api-keys"):
        serve(guarded.app, guarded.context, host="0.0.0.0", port=0, open_to_all=True, grace_s=1.0)


def test_keys_come_from_a_file_without_its_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nalpha\n\n beta \n")
    keys = Keys.read(file)
    assert keys.owner("Bearer alpha") == keys.owner("bearer alpha")
    assert keys.owner("Bearer beta") not in (None, keys.owner("Bearer alpha"))
    file.write_text("# none\n")
    with pytest.raises(ValueError, match="no API key"):
        Keys.read(file)
    with pytest.raises(ValueError, match="cannot be read"):
        Keys.read(tmp_path / "missing")
