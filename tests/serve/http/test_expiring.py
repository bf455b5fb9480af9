"""Sessions that are too old or too many, in the running server."""

import json
from pathlib import Path
from time import time
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from http_server import serving, wait_until

GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0}
OFTEN = {"expire_s": 0.02}


def write(server: SimpleNamespace, session: str) -> None:
    server.client.completions.create(
        prompt="a", max_tokens=2, extra_body={"session": session}, **GREEDY
    )


def names(server: SimpleNamespace) -> list[str]:
    found = requests.get(f"{server.url}/v1/sessions", timeout=10).json()["data"]
    return [one["name"] for one in found]


def metric(server: SimpleNamespace, name: str) -> float:
    lines = requests.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_what_is_too_old_goes_at_the_start_with_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with serving(tmp_path) as server:
        write(server, "old")
        server.client.responses.create(input="a", max_output_tokens=2, **GREEDY)
        assert names(server) == ["old"]
    with serving(tmp_path, kept={"max_age_s": 1e-6}) as server:
        assert wait_until(lambda: metric(server, 'retnet_expired_total{kind="session"}') == 1)
        assert metric(server, 'retnet_expired_total{kind="response"}') == 1
        assert names(server) == []
    lines = [json.loads(r.getMessage()) for r in caplog.records if '"expired"' in r.getMessage()]
    assert [(line["sessions"], line["responses"]) for line in lines] == [(1, 1)]
    assert "old" in lines[0]["names"]


def test_what_is_too_much_goes_while_two_servers_of_one_folder_run(tmp_path: Path) -> None:
    settings: Any = {"limits": OFTEN, "kept": {"disk_bytes": 1}}
    with serving(tmp_path, **settings) as one, serving(tmp_path, **settings) as other:
        for number in range(3):
            write(one if number % 2 else other, str(number))
        assert wait_until(lambda: names(one) == names(other) == [])
        total = "retnet_expired_total"
        assert wait_until(lambda: metric(one, total) + metric(other, total) == 3)
        failures = "retnet_expiry_failures_total"
        assert metric(one, failures) == metric(other, failures) == 0


def test_an_error_while_expiring_is_told_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path, limits=OFTEN, kept={"max_age_s": 1e6}) as server:
        store = server.context.sessions
        expire = store.expire

        def fail() -> None:
            raise RuntimeError("no luck")

        store.expire = fail
        assert wait_until(lambda: metric(server, "retnet_expiry_failures_total") >= 2)
        write(server, "new")
        store.expire = lambda: expire(time() + 1e7)
        assert wait_until(lambda: names(server) == [])
    assert '{"event": "expiry failed", "error": "no luck"}' in caplog.text
