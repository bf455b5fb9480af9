"""Sessions over HTTP."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import requests

from http_server import serving

GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 8}


def chat(server: SimpleNamespace, text: str, session: str, **changes: Any) -> Any:
    return server.client.chat.completions.create(
        messages=[{"role": "user", "content": text}],
        extra_body={"session": session},
        **{**GREEDY, **changes},
    )


def test_a_session_goes_on_after_a_restart_and_reads_only_what_is_new(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        chat(server, "one", "a")
        expected = chat(server, "two", "a").choices[0].message.content
        first = chat(server, "one", "b")
    with serving(tmp_path) as server:
        again = chat(server, "two", "b")
        assert again.choices[0].message.content == expected
        usage = again.usage
        new = usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens
        assert new == len("\n\nUser:\ntwo\n\nAssistant:\n")
        assert server.engine.stats.tokens_read == new
        assert again.session["version"] > first.session["version"]


def test_a_stop_string_that_the_session_remembers_is_not_read_twice(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        free = chat(server, "one", "a").choices[0].message.content
        assert free[:2] == "\n\n"  # what this model likes is how the next turn begins
        done = chat(server, "one", "b", stop=["\n\n"])
        assert (done.choices[0].finish_reason, done.choices[0].message.content) == ("stop", "")
        before = server.engine.stats.tokens_read
        chat(server, "two", "b")
        assert server.engine.stats.tokens_read - before == len("User:\ntwo\n\nAssistant:\n")


def test_a_completion_goes_on_with_a_text(server: SimpleNamespace) -> None:
    whole = server.client.completions.create(prompt="Once upon", **GREEDY)
    halves = [
        server.client.completions.create(
            prompt=part, extra_body={"session": "halves"}, **{**GREEDY, "max_tokens": n}
        )
        for part, n in (("Once", 0), (" upon", 8))
    ]
    assert halves[1].choices[0].text == whole.choices[0].text
    assert halves[1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_fork_rollback_rename_export_import_and_delete(server: SimpleNamespace) -> None:
    url = f"{server.url}/v1/sessions"
    first = chat(server, "one", "s").session["version"]
    chat(server, "two", "s", stream=False)
    forked = requests.post(f"{url}/s/fork", json={"new_name": "f", "version": first}, timeout=10)
    assert forked.status_code == 200
    assert chat(server, "two", "f").choices[0].message.content
    told = requests.get(f"{url}/s", timeout=10).json()
    assert [turn["meta"]["messages"][0]["content"] for turn in told["turns"]] == ["one", "two"]
    back = requests.post(f"{url}/s/rollback", json={"version": first}, timeout=10).json()
    assert back["version"] == first
    data = requests.get(f"{url}/s/state", timeout=10).content
    assert requests.put(f"{url}/copy/state", data=data, timeout=10).status_code == 200
    same = [chat(server, "three", name).choices[0].message.content for name in ("s", "copy")]
    assert same[0] == same[1]
    assert requests.post(f"{url}/s/rename", json={"new_name": "t"}, timeout=10).ok
    names = [one["name"] for one in requests.get(url, timeout=10).json()["data"]]
    assert {"f", "t", "copy"} <= set(names)
    assert requests.delete(f"{url}/t", timeout=10).json()["deleted"] is True
    assert requests.get(f"{url}/t", timeout=10).status_code == 404
    damaged = bytearray(data)
    damaged[-1] ^= 1
    reply = requests.put(f"{url}/broken/state", data=bytes(damaged), timeout=10)
    assert reply.status_code == 400
    assert requests.put(f"{url}/copy/state", data=data, timeout=10).status_code == 409


def test_one_session_has_one_writer_at_a_time(server: SimpleNamespace) -> None:
    stream = chat(server, "one", "busy", stream=True, max_tokens=4000, logit_bias={"256": -100})
    next(iter(stream))
    with pytest.raises(openai.ConflictError) as conflict:
        chat(server, "two", "busy")
    assert conflict.value.code == "session_busy"
    stream.close()


def test_a_server_without_a_folder_keeps_no_sessions() -> None:
    with serving() as server, pytest.raises(openai.BadRequestError, match="--data-dir"):
        chat(server, "one", "a")


def test_a_session_is_read_as_text_with_how_long_its_turns_took(server: SimpleNamespace) -> None:
    first = chat(server, "one", "read").choices[0].message.content
    second = chat(server, "two", "read").choices[0].message.content
    url = f"{server.url}/v1/sessions/read"
    told = requests.get(f"{url}/text", timeout=10).json()
    before, _, after = told["text"].partition("two\n\nAssistant:\n")
    assert before.startswith(f"User:\none\n\nAssistant:\n{first}")
    assert after.startswith(second)
    turns = requests.get(url, timeout=10).json()["turns"]
    assert told["num_tokens"] == turns[-1]["num_tokens"]
    for timing in (turn["meta"]["timing"] for turn in turns):
        assert timing["tokens"] == 8
        assert 0 < timing["seconds"] < 60
    assert requests.get(f"{server.url}/v1/sessions/nobody/text", timeout=10).status_code == 404
