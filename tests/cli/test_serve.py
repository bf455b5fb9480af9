"""`retnet serve`: a process that can be talked to, and ends in order."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

import forks
from retnet.cli.status import FAILED
from retnet.serve.sessions import Limits

Run = Callable[..., tuple[int, str, str]]


@contextmanager
def process(folder: Path, *words: str) -> Iterator[tuple[forks.Popen, str]]:
    """Run `retnet serve` on a free port; give its address."""
    command = [sys.executable, "-m", "retnet", "serve", str(folder), "--port", "0", *words]
    with forks.Popen(command, stderr=forks.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            line = next(line for line in running.stderr if '"listening"' in line)
            yield running, f"http://127.0.0.1:{json.loads(line)['port']}"
        finally:
            running.kill()


def test_sigterm_lets_what_runs_finish_and_exits_with_0(checkpoint: Path, tmp_path: Path) -> None:
    with process(checkpoint, "--data-dir", str(tmp_path / "data")) as (running, url):
        body = {
            "model": "checkpoint",
            "prompt": "a",
            "max_tokens": 150,
            "stream": True,
            "session": "s",
        }
        with requests.post(f"{url}/v1/completions", json=body, stream=True, timeout=30) as reply:
            lines = reply.iter_lines()
            next(lines)
            running.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == b"data: [DONE]"
        last = json.loads(rest[-2].removeprefix(b"data: "))
        assert last["choices"][0]["finish_reason"] in ("length", "stop")
        assert running.wait(20) == 0
    with process(checkpoint, "--data-dir", str(tmp_path / "data")) as (running, url):
        told = requests.get(f"{url}/v1/sessions/s", timeout=10).json()
        assert told["num_tokens"] == last["session"]["num_tokens"]
        running.kill()  # and the next start does not mind
        running.wait(20)


def test_an_address_that_others_reach_needs_keys(run: Run, checkpoint: Path) -> None:
    status, _, err = run("serve", checkpoint, "--host", "0.0.0.0")
    assert status == FAILED
    assert "--api-keys" in err


def test_keys_of_the_environment_that_are_no_keys_are_refused(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETNET_API_KEYS", "a b")
    status, _, err = run("serve", checkpoint)
    assert status == FAILED
    assert "API key 1" in err


def test_how_much_is_kept_is_an_option(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    monkeypatch.setattr("retnet.serve.http.serve", lambda _, context, **__: found.append(context))
    words = ("--max-age", 2, "--max-stored", 3, "--memory", 4, "--keep-states", 5, "--max-state", 6)
    status, _, err = run("serve", checkpoint, "--data-dir", tmp_path / "data", *words)
    assert (status, "error" in err) == (0, False)
    assert found[0].limits.state_bytes == 6 << 20
    assert found[0].sessions._limits == Limits(
        max_age_s=2 * 86400.0, disk_bytes=3 << 20, memory_bytes=4 << 20, keep_states=5
    )
    status, _, err = run("serve", checkpoint, "--data-dir", tmp_path / "data", "--max-age", -1)
    assert status == FAILED
    assert "must be positive" in err
