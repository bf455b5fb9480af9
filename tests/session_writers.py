"""Processes that commit turns, until they are done or killed.

Those to be killed are forks of one process, in which everything is imported.
"""

import multiprocessing
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import sleep
from types import FrameType

from processes import start_server
from retnet.serve.sessions import (
    Identity,
    Limits,
    SessionExists,
    SessionMissing,
    SessionStore,
    VersionConflict,
    identify,
)
from session_support import equal_states, made_state, made_turn, small_model

FILES = {"folder.py", "index.py", "files.py", "redis_records.py", "redis_change.py"}
FUNCTIONS = {"write_state"}
"""The code that writes, whose lines count; what is computed before cannot be lost."""

Tell = Callable[[int], None]
"""Called by a writer with each number that it has committed."""


class Writer:
    """A process that commits turns and says of each that it has."""

    def __init__(self, work: Callable[..., None], place: Path | str, *arguments: int) -> None:
        start_server("forks_preload")
        context = multiprocessing.get_context("forkserver")
        self._said, says = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(work, place, says, *arguments))
        self._process.start()
        says.close()

    def end(self) -> list[int]:
        """Wait for the end; all that it said."""
        said = heard(self._said)
        self._process.join()
        assert self._process.exitcode == 0, "see what it wrote to standard error"
        return said


def _run(work: Callable[..., None], place: Path | str, says: Connection, *arguments: int) -> None:
    work(place, says.send, *arguments)


def heard(said: Connection) -> list[int]:
    """All numbers until the other end is closed, if only by a SIGKILL."""
    numbers: list[int] = []
    with suppress(EOFError):
        while True:
            numbers.append(said.recv())
    return numbers


def begin(folder: Path, tell: Tell, _: int) -> None:
    """Commit a first turn, unless another process is first."""
    identity = identify(small_model())
    store = SessionStore(folder, identity)
    with suppress(SessionExists):
        store.commit("text", "", made_turn(identity, 0), None)
        tell(0)
    store.close()


def compete(place: Path | str, tell: Tell, writer: int, turns: int) -> None:
    """Commit turns in competition with others: on a conflict, read again and try again."""
    identity = identify(small_model())
    store = SessionStore(place, identity)
    done = 0
    while done < turns:
        stored = store.get("text", "")
        turn = made_turn(identity, 1000 * writer + done)
        try:
            version = store.commit("text", "", turn, stored.version)
        except VersionConflict:
            continue
        tell(version)
        done += 1
    store.close()


def be_killed_at_lines(place: Path | str, tell: Tell, apart: int) -> None:
    """Kill a writer at the first line of a commit that runs, then at the one `apart` later, ..."""
    identity, last, line, kills = identify(small_model()), -1, 1, 0
    while True:
        said, killed = _fork(partial(_commit_until, place, identity, last + 1, line))
        found = committed(place, identity, newest=2)
        assert found in ({last + 1} if said else {last, last + 1}), line
        last = found
        if not killed:
            break
        kills, line = kills + 1, line + apart
    tell(kills)


def be_killed_at_moments(folder: Path, tell: Tell, kills: int) -> None:
    """Kill a writer while it commits turn after turn, at random moments."""
    identity, last, draw = identify(small_model()), -1, random.Random(0)
    for _ in range(kills):
        said, killed = _fork(
            partial(_commit_on, folder, identity, last + 1), after=draw.uniform(0.01, 0.2)
        )
        assert killed
        found = committed(folder, identity, newest=2)
        first = said[-1] if said else last
        assert found in (first, first + 1)
        last = found
    tell(last)


def committed(place: Path | str, identity: Identity, newest: int = 8) -> int:
    """The last turn's number, after the newest have been compared to the bit; -1 for none."""
    store = SessionStore(place, identity, Limits(memory_bytes=0))
    try:
        turns = store.turns("text", "")
    except SessionMissing:
        return -1
    else:
        for turn in turns[-newest:]:
            if turn.kept:
                stored = store.get("text", "", turn.version)
                assert equal_states(stored.state, made_state(identity, stored.meta["number"]))
        assert turns[-1].kept
        assert [turn.meta["number"] for turn in turns] == list(range(len(turns)))
        tokens = store.get("text", "").tokens
        assert tokens == [number % 16 for number in range(len(turns))]
        return len(turns) - 1
    finally:
        store.close()


def _fork(work: Callable[[Tell], None], after: float | None = None) -> tuple[list[int], bool]:
    """Work in a fork; what it said, and whether it died of SIGKILL, sent after these seconds."""
    said, says = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        try:
            work(says.send)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    says.close()
    if after is not None:
        sleep(after)
        os.kill(pid, signal.SIGKILL)
    numbers = heard(said)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), "see what it wrote to standard error"
    return numbers, status != 0


def _commit_on(folder: Path, identity: Identity, number: int, tell: Tell) -> None:
    store = SessionStore(folder, identity)
    version = None if number == 0 else store.get("text", "").version
    while True:
        version = store.commit("text", "", made_turn(identity, number), version)
        tell(number)
        number += 1


def _commit_until(
    place: Path | str, identity: Identity, number: int, line: int, tell: Tell
) -> None:
    """Commit one turn, and die at this line of those that run in our own code."""
    store = SessionStore(place, identity, Limits(memory_bytes=0))
    version = None if number == 0 else store.get("text", "").version
    turn, left = made_turn(identity, number), line

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal left
        code = frame.f_code
        if Path(code.co_filename).name not in FILES and code.co_name not in FUNCTIONS:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]
    store.commit("text", "", turn, version)
    sys.settrace(None)
    tell(number)
