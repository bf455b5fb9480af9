"""Two servers and one folder."""

from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import openai
import pytest
import requests

from ports import wait_until
from replicas import Replica, complete, replicas


@pytest.fixture(scope="module")
def pair(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    folder = tmp_path_factory.mktemp("replicas")
    with replicas(checkpoint, str(folder / "data"), folder) as both:
        yield both


def test_any_replica_serves_any_session_and_none_is_behind(pair: list[Replica]) -> None:
    a, b = pair
    alone = [complete(a.client, prompt, "alone").choices[0].text for prompt in "wxyz"]
    turns = [
        complete(replica.client, prompt, "shared")
        for replica, prompt in zip((a, b, a, b), "wxyz", strict=True)
    ]
    assert [turn.choices[0].text for turn in turns] == alone
    cached = [turn.usage.prompt_tokens_details.cached_tokens for turn in turns]
    assert cached == sorted(set(cached))  # each read only what was new

    def rollback(replica: Replica, version: int) -> None:
        url = f"{replica.url}/v1/sessions/shared/rollback"
        assert requests.post(url, json={"version": version}, timeout=30).ok

    first = turns[0].session["version"]
    rollback(a, first)
    assert complete(b.client, "x", "shared").choices[0].text == alone[1]  # b had gone further
    rollback(b, first)
    assert complete(a.client, "x", "shared").choices[0].text == alone[1]
    url = f"{b.url}/v1/sessions"
    assert requests.post(f"{url}/shared/rename", json={"new_name": "new"}, timeout=30).ok
    assert requests.get(f"{a.url}/v1/sessions/shared", timeout=30).status_code == 404
    assert complete(a.client, "y", "new").choices[0].text == alone[2]
    assert requests.delete(f"{url}/new", timeout=30).ok
    assert complete(a.client, "w", "new").usage.prompt_tokens_details.cached_tokens == 0


def test_the_later_of_two_writers_is_told_and_the_session_is_the_others(
    pair: list[Replica],
) -> None:
    a, b = pair
    first = complete(a.client, "w", "two").session["version"]
    a.hold()
    told: Queue[Any] = Queue()

    def write() -> None:
        try:
            told.put(complete(a.client, "late", "two"))
        except openai.APIStatusError as error:
            told.put(error)

    writer = Thread(target=write)
    writer.start()
    try:
        a.let(1)
        assert wait_until(a.running)
        won = complete(b.client, "x", "two").session["version"]
    finally:
        a.release()
        writer.join()
    error = told.get()
    assert isinstance(error, openai.ConflictError)
    assert error.code == "version_conflict"
    for replica in pair:
        turns = requests.get(f"{replica.url}/v1/sessions/two", timeout=30).json()["turns"]
        assert [turn["version"] for turn in turns] == [first, won]
    alone = [complete(b.client, prompt, "one").choices[0].text for prompt in "wxy"]
    assert complete(a.client, "y", "two").choices[0].text == alone[2]


def test_a_replica_killed_in_a_turn_leaves_the_session_to_the_other(pair: list[Replica]) -> None:
    a, b = pair
    alone = [complete(b.client, prompt, "whole").choices[0].text for prompt in "wxy"]
    for replica, prompt in zip((a, b), "wx", strict=True):
        complete(replica.client, prompt, "broken")
    a.hold()
    stream = complete(a.client, "y", "broken", max_tokens=500, stream=True)
    a.let(5)
    assert next(iter(stream)).choices[0].text  # it is in the middle
    a.kill()
    with pytest.raises(openai.APIConnectionError):
        list(stream)
    turns = requests.get(f"{b.url}/v1/sessions/broken", timeout=30).json()["turns"]
    assert len(turns) == 2
    again = complete(b.client, "y", "broken")
    assert again.choices[0].text == alone[2]
    assert again.usage.prompt_tokens_details.cached_tokens > 0
