"""`retnet serve` in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import perf_counter, sleep

from retnet.bench.ours import fresh
from retnet.data import Tokenizer
from retnet.hub import save_checkpoint
from retnet.model import preset

START_S = 600.0
POLL_S = 0.02


class Server:
    """A server that can be killed and started again at the same address.

    Attributes:
        folder: the checkpoint; beside it what the server says.
        port: where it listens.
    """

    def __init__(self, folder: Path, *words: str) -> None:
        """Name a server; `words` are options of `retnet serve`."""
        self.folder = folder
        self.port = 0
        self._words = words
        self._said = folder.with_name("said.txt")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Start it; return the seconds until it listens.

        Raises:
            ValueError: it ends, or does not listen; what it said.
        """
        begin, seen = perf_counter(), self._size()
        command = [sys.executable, "-m", "retnet", "serve", str(self.folder)]
        with self._said.open("ab") as file:
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port), *self._words], stderr=file
            )
        while perf_counter() - begin < START_S and self._process.poll() is None:
            for line in self._said.read_bytes()[seen:].decode().splitlines():
                if '"listening"' in line:
                    self.port = json.loads(line)["port"]
                    return perf_counter() - begin
            sleep(POLL_S)
        said = "\n".join(self._said.read_text().splitlines()[-20:])
        raise ValueError(f"the server does not listen; the last that it said:\n{said}")

    def kill(self) -> None:
        """End it as a power cut does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """End it as its users do; return the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(START_S)

    def rss_bytes(self) -> int:
        """Memory of the process that is in use; 0 where the system does not say."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def _size(self) -> int:
        return self._said.stat().st_size if self._said.exists() else 0

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


def save_fresh(folder: Path, name: str) -> None:
    """Write a checkpoint of a preset with new weights, whose tokens are bytes."""
    tokenizer = Tokenizer.bytes()
    save_checkpoint(folder, fresh(preset(name, vocab_size=tokenizer.vocab_size)), tokenizer)
