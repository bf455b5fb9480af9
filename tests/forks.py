"""`subprocess` for Python programs, as forks of a server that has imported what is slow to import.

For tests of what a program does in a process of its own - to be killed, to fail, to answer - and
not of how Python starts, which takes it seconds. It has what such tests need of `subprocess`, and
can stand in its place in a module of ours.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from processes import start_server

PIPE, STDOUT = subprocess.PIPE, subprocess.STDOUT
TimeoutExpired = subprocess.TimeoutExpired
To = int | IO[Any] | None


class Popen:
    """A fork that runs `python -m MODULE ...` or `python -c CODE ...`.

    Attributes:
        pid, returncode, stdout, stderr: as those of `subprocess.Popen`.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        stdout: To = None,
        stderr: To = None,
        text: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.args = command
        interpreter, *words = map(str, command)
        assert interpreter == sys.executable
        assert words[0] in ("-m", "-c")
        start_server("forks_preload")
        context = multiprocessing.get_context("forkserver")
        self.stdout, out = _opened(stdout, 1, text)
        self.stderr, err = (None, out) if stderr == STDOUT else _opened(stderr, 2, text)
        env = dict(os.environ if env is None else env)
        self._process = context.Process(target=_be, args=(words, out, err, env, str(Path.cwd())))
        self._process.start()
        out.close()
        err.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def communicate(self) -> tuple[Any, Any]:
        """What it says until it ends; one pipe at most may become full."""
        said = [None if pipe is None else pipe.read() for pipe in (self.stdout, self.stderr)]
        self.wait()
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Popen":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()


def run(
    command: Sequence[str | Path],
    *,
    capture_output: bool = False,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess:
    """Wait for the end of a `Popen`."""
    if capture_output:
        options |= {"stdout": PIPE, "stderr": PIPE}
    with Popen(command, **options) as process:
        stdout, stderr = process.communicate()
    assert process.returncode is not None
    done = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


def _opened(to: To, number: int, text: bool) -> tuple[IO[Any] | None, Connection]:
    """Where we read what the fork writes to a file descriptor, if we do, and where it writes."""
    if to == PIPE:
        reads, writes = multiprocessing.Pipe(duplex=False)
        pipe = open(os.dup(reads.fileno()), "r" if text else "rb")  # noqa: SIM115
        reads.close()
        return pipe, writes
    assert to is None or not isinstance(to, int)
    return None, Connection(os.dup(number if to is None else to.fileno()), readable=False)


def _be(
    words: list[str], out: Connection, err: Connection, env: dict[str, str], folder: str
) -> None:
    """Be that program."""
    for number, connection in ((1, out), (2, err)):
        os.dup2(connection.fileno(), number)
    for connection in {out, err}:
        connection.close()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    kind, code, *words = words
    sys.argv = [kind, *words]
    if kind == "-m":
        runpy.run_module(code, run_name="__main__", alter_sys=True)
    else:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
