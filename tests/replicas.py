"""Servers in processes of their own, whose engines can be held between two steps."""

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event, Semaphore
from pathlib import Path
from typing import Any

import openai
import requests

from ports import wait_until
from processes import start_server

PATIENCE_S = 120.0


class Replica:
    """`retnet serve` in a process.

    Attributes:
        url: where it listens.
        client: of it.
        pid: its process.
    """

    def __init__(self, checkpoint: Path, place: str, log: Path) -> None:
        start_server("forks_preload")
        context = multiprocessing.get_context("forkserver")
        self._held, self._steps = context.Event(), context.Semaphore(0)
        words = ["serve", str(checkpoint), "--port", "0", "--data-dir", place, "--running", "4"]
        self._log = log
        self._process = context.Process(
            target=_serve, args=(words, str(log), self._held, self._steps)
        )
        self._process.start()

    def wait(self) -> None:
        """Wait until it listens."""
        assert wait_until(lambda: bool(self._listening()), PATIENCE_S), self._log.read_text()
        self.port = json.loads(self._listening()[0])["port"]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = client_of(self.url)

    def _listening(self) -> list[str]:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line for line in lines if '"listening"' in line]

    def hold(self) -> None:
        """From now on the engine makes a step only when it is let."""
        self._held.set()

    def let(self, steps: int = 1) -> None:
        """Let a held engine make some steps."""
        for _ in range(steps):
            self._steps.release()

    def release(self) -> None:
        """Let it go on for good."""
        self._held.clear()
        self.let()

    @property
    def num_answered(self) -> int:
        """Requests for texts that it has logged."""
        return self._log.read_text().count('"route": "/v1/completions"')

    def running(self) -> bool:
        """Whether it works on a request."""
        lines = requests.get(f"{self.url}/metrics", timeout=PATIENCE_S).text.splitlines()
        (line,) = (line for line in lines if line.startswith("retnet_requests_running "))
        return float(line.split()[1]) > 0

    def kill(self) -> None:
        """With SIGKILL."""
        self.client.close()
        self._process.kill()
        self._process.join()


def _serve(words: list[str], log: str, held: Event, steps: Semaphore) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)

    from retnet.cli import main
    from retnet.serve.engine import Engine

    step = Engine.step

    def slow(self: Engine) -> Any:
        if held.is_set() and self.busy:
            steps.acquire()
        return step(self)

    Engine.step = slow  # type: ignore[method-assign]
    sys.exit(main(words))


def client_of(url: str) -> openai.OpenAI:
    """A client that does not try again by itself."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)


@contextmanager
def replicas(checkpoint: Path, place: str, logs: Path) -> Iterator[list[Replica]]:
    """Two of them on one place for sessions."""
    pair = [Replica(checkpoint, place, logs / f"{number}.log") for number in range(2)]
    try:
        for replica in pair:
            replica.wait()
        yield pair
    finally:
        for replica in pair:
            replica.kill()


def complete(client: openai.OpenAI, prompt: str, session: str | None, **more: Any) -> Any:
    """A turn of a text, greedy and of a known length."""
    asked = {"max_tokens": 6, "temperature": 0, "logit_bias": {"256": -100}, **more}
    return client.completions.create(
        model="checkpoint", prompt=prompt, extra_body={"session": session}, **asked
    )
