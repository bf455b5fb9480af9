"""Two servers and one Redis behind nginx, with the configuration that the docs give."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import openai
import pytest
import requests

from debian import program
from ports import free_port, wait_until
from redis_server import RedisServer, running
from replicas import Replica, client_of, complete, replicas

CONFIGURATION = Path(__file__).parents[3] / "docs/recipes/nginx.conf"


class Front(NamedTuple):
    """What a client sees, and what is behind."""

    url: str
    client: openai.OpenAI
    pair: list[Replica]
    redis: RedisServer


@pytest.fixture(scope="module")
def front(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("front")
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    with (
        running(folder, *durable) as redis,
        replicas(checkpoint, redis.address, folder) as pair,
        nginx(folder, pair) as port,
    ):
        url = f"http://127.0.0.1:{port}"
        with client_of(url) as client:
            yield Front(url, client, pair, redis)


@contextmanager
def nginx(folder: Path, pair: list[Replica]) -> Iterator[int]:
    """Run it with the documented file, in which nothing but ports is another."""
    text, port = CONFIGURATION.read_text(), free_port()
    for documented, ours in ((8000, port), (8001, pair[0].port), (8002, pair[1].port)):
        assert text.count(f"127.0.0.1:{documented};") + text.count(f"127.0.0.1:{documented} ") == 1
        text = text.replace(f"127.0.0.1:{documented}", f"127.0.0.1:{ours}")
    (folder / "nginx.conf").write_text(text)
    log = folder / "nginx.log"
    words = ["-c", folder / "nginx.conf", "-e", log, "-g", f"daemon off; pid {folder}/nginx.pid;"]
    process = subprocess.Popen([program("nginx", "nginx"), *words])
    try:
        url = f"http://127.0.0.1:{port}/health"
        assert wait_until(lambda: _answers(url)), log.read_text()
        yield port
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def test_tokens_come_one_by_one(front: Front) -> None:
    """Each is made only after the one before has arrived."""
    for replica in front.pair:
        replica.hold()
    asked = {"max_tokens": 8, "logit_bias": {"97": 100}, "stream": True}
    stream = None
    try:
        for replica in front.pair:
            replica.let(2)
        stream = complete(front.client, "w", "slow", **asked)
        pieces = []
        for chunk in stream:
            pieces.append(chunk.choices[0].text)
            for replica in front.pair:
                replica.let()
    finally:
        for replica in front.pair:
            replica.release()
    assert "".join(pieces) == "a" * 8
    assert sum(piece != "" for piece in pieces) >= 7
    stored = requests.get(f"{front.url}/v1/sessions/slow", timeout=30).json()
    assert stored["num_tokens"] == 1 + 1 + 8  # with the one that begins a text


def test_one_session_goes_on_alternately_on_both_replicas(front: Front) -> None:
    a, b = front.pair
    first = a.num_answered
    alone = [complete(a.client, prompt, "alone").choices[0].text for prompt in "uvwxyz"]
    assert wait_until(lambda: a.num_answered >= first + 6)  # logged after it was answered
    before = [replica.num_answered for replica in front.pair]
    turns = [complete(front.client, prompt, "shared") for prompt in "uvwxyz"]
    assert [turn.choices[0].text for turn in turns] == alone
    cached = [turn.usage.prompt_tokens_details.cached_tokens for turn in turns]
    assert cached == sorted(set(cached))
    half = [old + 3 for old in before]
    assert wait_until(lambda: [replica.num_answered for replica in (a, b)] == half)


def test_bodies_and_errors_pass_through(front: Front) -> None:
    url = f"{front.url}/v1/completions"
    body = {"model": "checkpoint", "prompt": "x" * 20_000, "max_tokens": 1}
    assert requests.post(url, json=body, timeout=60).ok
    reply = requests.post(url, json={**body, "prompt": "x" * (5 << 20)}, timeout=60)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    complete(front.client, "w", "whole file")
    data = requests.get(f"{front.url}/v1/sessions/whole file/state", timeout=30).content
    reply = requests.put(f"{front.url}/v1/sessions/copy/state", data=data, timeout=30)
    assert reply.ok, reply.text
    requests.delete(f"{front.url}/v1/sessions/copy", timeout=30)


def test_redis_that_is_lost_for_a_while_is_told_and_forgets_nothing(front: Front) -> None:
    first = complete(front.client, "w", "kept").session
    front.redis.kill()
    try:
        with pytest.raises(openai.InternalServerError) as told:
            complete(front.client, "x", "kept")
        assert (told.value.status_code, told.value.code) == (503, "sessions_unavailable")
        assert "Redis cannot be reached" in told.value.message
        assert complete(front.client, "x", None).choices  # without a session all is well
    finally:
        front.redis.start()
    turns = requests.get(f"{front.url}/v1/sessions/kept", timeout=30).json()["turns"]
    assert [turn["version"] for turn in turns] == [first["version"]]
    assert complete(front.client, "x", "kept").session["version"] > first["version"]


def test_when_a_replica_is_killed_the_other_goes_on(front: Front) -> None:
    a, b = front.pair
    alone = [complete(b.client, prompt, "whole").choices[0].text for prompt in "wxyz"]
    first = complete(front.client, "w", "broken")
    a.kill()
    turns = [first, *(complete(front.client, prompt, "broken") for prompt in "xyz")]
    assert [turn.choices[0].text for turn in turns] == alone
    assert _answers(f"{front.url}/ready")
