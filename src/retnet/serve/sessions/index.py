"""The index of sessions: one SQLite file that several processes and threads share.

Which of two writers was first is decided by SQLite's write transactions, which happen one after the
other.
"""

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from retnet.hub.files import flush
from retnet.serve.sessions.errors import SessionError
from retnet.serve.sessions.records import Found, Head, Kept, Key, NewTurn, TurnRow

FORMAT = 1
PATIENCE_S = 60.0
"""How long a writer waits for another."""

SCHEMA = """
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    config TEXT NOT NULL,
    parent TEXT NOT NULL,
    created REAL NOT NULL,
    changed REAL NOT NULL,
    UNIQUE (owner, name)
);
CREATE INDEX by_change ON sessions (changed);
CREATE TABLE turns (
    session INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    version INTEGER NOT NULL,
    tokens BLOB NOT NULL,
    num_tokens INTEGER NOT NULL,
    meta TEXT NOT NULL,
    created REAL NOT NULL,
    file TEXT REFERENCES states (file),
    PRIMARY KEY (session, version)
);
CREATE INDEX by_file ON turns (file);
CREATE TABLE states (file TEXT PRIMARY KEY, bytes INTEGER NOT NULL);
CREATE TABLE counter (version INTEGER NOT NULL);
INSERT INTO counter VALUES (0);
"""

TURN = "version, num_tokens, meta, created, file"

HEAD = "fingerprint, config, parent, sessions.created, changed, version, num_tokens, meta"

NEWEST = (
    "sessions JOIN turns ON session = sessions.id "
    "AND version = (SELECT max(version) FROM turns WHERE session = sessions.id)"
)
"""Each session with its newest turn."""


class Index:
    """Opens the file, or makes it."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            SessionError: it is no index of ours, or damaged.
        """
        self._lock = threading.RLock()  # one connection, whose transactions must not mix
        if not path.exists():
            _make(path)
        try:
            self._db = sqlite3.connect(
                path, timeout=PATIENCE_S, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA synchronous = FULL")  # a commit outlives a power cut too
            self._db.execute("PRAGMA foreign_keys = ON")
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError as error:
            raise SessionError(
                f"{path} cannot be opened ({error}); restore it from a backup, or give another "
                "data folder"
            ) from None
        if found != FORMAT:
            self._db.close()
            raise SessionError(
                f"{path} has format {found}, and this program reads {FORMAT}; the version that "
                "wrote it reads it"
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent view."""
        yield from self._transaction("BEGIN")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other writer's overlaps; it is on disk when the block ends."""
        yield from self._transaction("BEGIN IMMEDIATE")

    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute(begin)
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _make(path: Path) -> None:
    """Make an empty index, whole or not at all; another process may be doing the same."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.touch(mode=0o600)  # and so SQLite makes the files beside it
    db = sqlite3.connect(temporary, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")  # readers and a writer at the same time
    db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")
    db.close()
    with suppress(FileExistsError):  # then the other was first
        os.link(temporary, path)
    temporary.unlink()
    flush(path.parent)


class Rows:
    """The index inside a transaction; see `Change` and `Records` for what the methods do.

    Attributes:
        named: state files that have been added.
        dropped: state files that no turn needs any more, to delete after the transaction.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        """Work on a connection on which a transaction has begun."""
        self._db = db
        self.named: list[str] = []
        self.dropped: list[Kept] = []

    def head(self, key: Key) -> Head | None:
        """The session, if there is one."""
        row = self._db.execute(
            f"SELECT id, {HEAD} FROM {NEWEST} WHERE owner = ? AND name = ?", key
        ).fetchone()
        return None if row is None else self._head(row)

    def find(self, key: Key, version: int | None) -> Found | None:
        """A session at one of its turns."""
        head = self.head(key)
        if head is None:
            return None
        session = self._id(key)
        version = head.version if version is None else version
        row = self._db.execute(
            f"SELECT {TURN} FROM turns WHERE session = ? AND version = ?", (session, version)
        ).fetchone()
        if row is None:
            return Found(head, None, b"")
        texts = self._db.execute(
            "SELECT tokens FROM turns WHERE session = ? AND version <= ? ORDER BY version",
            (session, version),
        )
        return Found(head, _turn(row), b"".join(tokens for (tokens,) in texts))

    def turns(self, key: Key) -> list[TurnRow] | None:
        """All turns of a session, the oldest first."""
        session = self._id(key)
        if session is None:
            return None
        found = self._db.execute(
            f"SELECT {TURN} FROM turns WHERE session = ? ORDER BY version", (session,)
        )
        return [_turn(row) for row in found]

    def page(self, owner: str, limit: int, after: str) -> list[tuple[str, Head]]:
        """An owner's sessions by name."""
        found = self._db.execute(
            f"SELECT name, id, {HEAD} FROM {NEWEST} "
            "WHERE owner = ? AND name > ? ORDER BY name LIMIT ?",
            (owner, after, limit),
        ).fetchall()
        return [(name, self._head(row)) for name, *row in found]

    def oldest(self) -> list[tuple[Key, float]]:
        """All sessions, those changed first first."""
        found = self._db.execute("SELECT owner, name, changed FROM sessions ORDER BY changed, id")
        return [(Key(owner, name), changed) for owner, name, changed in found]

    def states(self) -> set[str]:
        """All state files that are named."""
        return {state for (state,) in self._db.execute("SELECT file FROM states")}

    def num_bytes(self) -> int:
        """Of all state files."""
        return self._db.execute("SELECT coalesce(sum(bytes), 0) FROM states").fetchone()[0]

    def begin(self, key: Key, head: Head) -> None:
        """Add a session without turns."""
        self._db.execute(
            "INSERT INTO sessions (owner, name, fingerprint, config, parent, created, changed) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*key, head.fingerprint, head.config, head.parent, head.created, head.changed),
        )

    def append(self, key: Key, turn: NewTurn) -> int:
        """Add a turn under the next version."""
        (version,) = self._db.execute(
            "UPDATE counter SET version = version + 1 RETURNING version"
        ).fetchone()
        state, num_bytes = turn.state.kept
        self._db.execute("INSERT INTO states VALUES (?, ?)", (state, num_bytes))
        self._db.execute(
            "INSERT INTO turns (session, version, tokens, num_tokens, meta, created, file) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                self._id(key),
                version,
                turn.tokens,
                turn.num_tokens,
                turn.meta,
                turn.created,
                state,
            ),
        )
        self._touch(key, turn.created)
        self.named.append(state)
        return version

    def forget(self, key: Key, versions: Sequence[int]) -> None:
        """Keep these turns' tokens only."""
        self._release(
            [(self._id(key), version) for version in versions],
            "UPDATE turns SET file = NULL WHERE session = ? AND version = ?",
        )

    def cut(self, key: Key, version: int, changed: float) -> None:
        """Remove the turns after one."""
        self._drop_turns(key, version)
        self._touch(key, changed)

    def remove(self, key: Key) -> None:
        """Remove a session."""
        self._drop_turns(key, -1)
        self._db.execute("DELETE FROM sessions WHERE owner = ? AND name = ?", key)

    def copy(self, key: Key, version: int, new: Key, head: Head) -> None:
        """Begin a session with turns of another; the state files are shared."""
        self.begin(new, head)
        names = f"version, tokens, {TURN.removeprefix('version, ')}"
        self._db.execute(
            f"INSERT INTO turns (session, {names}) "
            f"SELECT ?, {names} FROM turns WHERE session = ? AND version <= ?",
            (self._id(new), self._id(key), version),
        )

    def rename(self, key: Key, new: Key, changed: float) -> None:
        """Give a session another key."""
        self._db.execute(
            "UPDATE sessions SET owner = ?, name = ?, changed = ? WHERE owner = ? AND name = ?",
            (*new, changed, *key),
        )

    def _id(self, key: Key) -> int | None:
        row = self._db.execute(
            "SELECT id FROM sessions WHERE owner = ? AND name = ?", key
        ).fetchone()
        return None if row is None else row[0]

    def _head(self, row: Sequence[Any]) -> Head:
        session, *fields = row
        states = self._db.execute(
            "SELECT version, file, bytes FROM turns JOIN states USING (file) "
            "WHERE session = ? ORDER BY version",
            (session,),
        )
        return Head(*fields, states={version: Kept(*kept) for version, *kept in states})

    def _touch(self, key: Key, changed: float) -> None:
        self._db.execute(
            "UPDATE sessions SET changed = ? WHERE owner = ? AND name = ?", (changed, *key)
        )

    def _drop_turns(self, key: Key, after: int) -> None:
        session = self._id(key)
        found = self._db.execute(
            "SELECT version FROM turns WHERE session = ? AND version > ?", (session, after)
        )
        self._release(
            [(session, version) for (version,) in found],
            "DELETE FROM turns WHERE session = ? AND version = ?",
        )

    def _release(self, turns: Sequence[tuple[int | None, int]], statement: str) -> None:
        """Run the statement on each turn, and drop the files that were theirs alone."""
        unused = (
            "DELETE FROM states WHERE file = ?1 "
            "AND NOT EXISTS (SELECT 1 FROM turns WHERE file = ?1) RETURNING file, bytes"
        )
        for turn in turns:
            row = self._db.execute(
                "SELECT file FROM turns WHERE session = ? AND version = ?", turn
            ).fetchone()
            self._db.execute(statement, turn)
            self.dropped += [Kept(*found) for found in self._db.execute(unused, row).fetchall()]


def _turn(row: Sequence[Any]) -> TurnRow:
    *fields, state = row
    return TurnRow(*fields, kept=state is not None)
