"""Sessions in a folder: an index in SQLite, and one safetensors file for each state.

A file is written whole, flushed to disk and never changed; then the index names it, in a
transaction that is flushed too. Killed in between, a process leaves a file that nothing names,
which a later one sweeps away. All of it is readable by its owner alone.
"""

import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import safetensors
from torch import Tensor

from retnet.hub.files import flush
from retnet.serve.sessions.errors import SessionError, SessionsUnavailable
from retnet.serve.sessions.index import Index, Rows
from retnet.serve.sessions.records import (
    Change,
    Found,
    Head,
    Kept,
    Key,
    Staged,
    TurnRow,
)
from retnet.serve.sessions.state_file import read_state, write_state

ORPHAN_S = 3600.0
"""A file that the index does not name after this long is a killed process's, not a slow one's."""

Result = TypeVar("Result")


class Folder:
    """A folder that several processes on one machine share."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, or make it."""
        self._folder = folder
        self._states = folder / "states"
        with self._told():
            self._states.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._states.mkdir(mode=0o700, exist_ok=True)
            flush(folder.parent)
            self._index = Index(folder / "index.sqlite")

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def change(self, work: Callable[[Change], Result]) -> Result:
        """See `Records`."""
        with self._told():
            with self._index.write() as db:
                change = Rows(db)
                result = work(change)
                for state in change.named:
                    if not (self._states / state).exists():
                        raise SessionsUnavailable(
                            f"the state file {state} was swept away before it was named, after "
                            f"{ORPHAN_S:g} seconds; see whether the clock is right, and try again"
                        )
            with suppress(OSError):  # what is left will be swept
                for state, _ in change.dropped:
                    (self._states / state).unlink(missing_ok=True)
        return result

    def head(self, key: Key) -> Head | None:
        """See `Records`."""
        with self._told(), self._index.read() as db:
            return Rows(db).head(key)

    def find(self, key: Key, version: int | None) -> Found | None:
        """See `Records`."""
        with self._told(), self._index.read() as db:
            return Rows(db).find(key, version)

    def turns(self, key: Key) -> list[TurnRow] | None:
        """See `Records`."""
        with self._told(), self._index.read() as db:
            return Rows(db).turns(key)

    def page(self, owner: str, limit: int, after: str) -> list[tuple[str, Head]]:
        """See `Records`."""
        with self._told(), self._index.read() as db:
            return Rows(db).page(owner, limit, after)

    def oldest(self) -> list[tuple[Key, float]]:
        """See `Records`."""
        with self._told(), self._index.read() as db:
            return Rows(db).oldest()

    @contextmanager
    def stage(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[Staged]:
        """Write a file, which the index must name before the block ends."""
        state = f"{uuid.uuid4().hex}.safetensors"
        path = self._states / state
        named = False
        try:
            with self._told():
                write_state(path, tensors, metadata)
                size = path.stat().st_size
            yield Staged(Kept(state, size), None)
            named = True
        finally:
            if not named:
                self._take_back(state)

    def load(self, state: str) -> tuple[dict[str, str], dict[str, Tensor]]:
        """See `Records`."""
        with self._told():
            return read_state(self._states / state)

    def sweep(self) -> int:
        """Delete old files that the index does not name.

        It is a transaction, so that a slow writer either is before it, and its file is named, or
        after it, and finds its file gone.
        """
        with self._told():
            old = time.time() - ORPHAN_S
            found = {path.name for path in self._states.iterdir() if _changed_before(path, old)}
            if not found:
                return 0
            with self._index.write() as db:
                orphans = found - Rows(db).states()
                for state in orphans:
                    (self._states / state).unlink(missing_ok=True)
        return len(orphans)

    def _take_back(self, state: str) -> None:
        """Delete a file after an error, unless the transaction with it came through after all."""
        with suppress(SessionError, OSError), self._told(), self._index.write() as db:
            if state not in Rows(db).states():
                (self._states / state).unlink(missing_ok=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what is wrong with the disk in words for the user."""
        try:
            yield
        except FileNotFoundError:
            raise  # of a state, see `load`
        except (OSError, sqlite3.DatabaseError, safetensors.SafetensorError) as error:
            raise SessionsUnavailable(
                f"sessions cannot be kept in {self._folder} ({error}); what was kept is as it was: "
                "see whether the disk is full, and try again"
            ) from error


def _changed_before(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime < moment
    except FileNotFoundError:  # another process removed it
        return False
