"""A Redis server of a test's own."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from debian import program
from ports import free_port, wait_until
from session_support import Place

STATE = "retnet:state:"


class RedisServer:
    """A process in a folder, on a port that stays the same when it is started again.

    Attributes:
        client: of `redis`.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._program = program("redis-server", "redis-server")
        self._options = options
        self.port = free_port()
        self.client: Any = redis.Redis(port=self.port)

    @property
    def address(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]
        log = (self._folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [self._program, *words, "--dir", str(self._folder), *self._options], stdout=log
            )
        assert wait_until(self.answers), (self._folder / "log").read_text()

    def answers(self) -> bool:
        try:
            return self.client.ping()
        except redis.RedisError:
            return False

    def kill(self) -> None:
        """As a power cut would, but for what the system still writes."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def states(self) -> set[str]:
        """Names of the states that it keeps."""
        return {key.decode().removeprefix(STATE) for key in self.client.keys(f"{STATE}*")}

    def place(self) -> Place:
        return Place(
            self.address,
            states=self.states,
            data=lambda state: self.client.hget(STATE + state, "data"),
            put=lambda state, data: self.client.hset(STATE + state, "data", data),
            lose=lambda state: self.client.delete(STATE + state),
        )


@contextmanager
def running(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server; options are those of redis.conf."""
    server = RedisServer(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        server.client.close()
