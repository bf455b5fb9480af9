"""The index of sessions: one SQLite file that several processes and threads share.

A version is a number that the index gives once, in rising order, to a turn that is committed: the
same version is the same text and the same state, also in a fork. Which of two writers was first is
decided by SQLite's write transactions, which happen one after the other.
"""

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from retnet.hub.files import flush
from retnet.serve.sessions.errors import SessionError

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

HEAD = "version = (SELECT max(version) FROM turns WHERE session = sessions.id)"


class SessionRow(NamedTuple):
    """A session; see the schema, and `Listed` for what the fields are."""

    id: int
    owner: str
    name: str
    fingerprint: str
    config: str
    parent: str
    created: float
    changed: float


class TurnRow(NamedTuple):
    """A turn, without its tokens; `file` is None where its state is no longer kept."""

    version: int
    num_tokens: int
    meta: str
    created: float
    file: str | None


class Unused(NamedTuple):
    """A state file that no turn needs any more, for the caller to delete after the commit."""

    file: str
    num_bytes: int


TURN = ", ".join(TurnRow._fields)


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
    db = sqlite3.connect(temporary, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")  # readers and a writer at the same time
    db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")
    db.close()
    with suppress(FileExistsError):  # then the other was first
        os.link(temporary, path)
    temporary.unlink()
    flush(path.parent)


def find_session(db: sqlite3.Connection, owner: str, name: str) -> SessionRow | None:
    """The session of this name, if its owner has one."""
    row = db.execute(
        "SELECT * FROM sessions WHERE owner = ? AND name = ?", (owner, name)
    ).fetchone()
    return None if row is None else SessionRow(*row)


def find_turn(db: sqlite3.Connection, session: int, version: int | None) -> TurnRow | None:
    """A turn of a session; None finds the newest."""
    row = db.execute(
        f"SELECT {TURN} FROM turns WHERE session = ?1 AND version = "
        "coalesce(?2, (SELECT max(version) FROM turns WHERE session = ?1))",
        (session, version),
    ).fetchone()
    return None if row is None else TurnRow(*row)


def find_turns(db: sqlite3.Connection, session: int) -> list[TurnRow]:
    """All turns of a session, the oldest first."""
    rows = db.execute(f"SELECT {TURN} FROM turns WHERE session = ? ORDER BY version", (session,))
    return [TurnRow(*row) for row in rows]


def text_until(db: sqlite3.Connection, session: int, version: int) -> bytes:
    """The tokens of a session up to and with a turn, uint32 little-endian."""
    rows = db.execute(
        "SELECT tokens FROM turns WHERE session = ? AND version <= ? ORDER BY version",
        (session, version),
    )
    return b"".join(tokens for (tokens,) in rows)


def add_session(db: sqlite3.Connection, row: SessionRow) -> int:
    """Add a session without turns, under a new id."""
    places = ", ".join("?" * (len(row) - 1))
    names = ", ".join(SessionRow._fields[1:])
    found = db.execute(f"INSERT INTO sessions ({names}) VALUES ({places})", row[1:])
    assert found.lastrowid is not None
    return found.lastrowid


def add_turn(
    db: sqlite3.Connection, session: int, tokens: bytes, turn: TurnRow, num_bytes: int
) -> int:
    """Add a turn under a new version, which is returned; `turn.version` is not looked at.

    Args:
        db: in a write transaction.
        session: its id.
        tokens: new ones.
        turn: with a file that no turn has yet.
        num_bytes: size of that file.
    """
    (version,) = db.execute("UPDATE counter SET version = version + 1 RETURNING version").fetchone()
    db.execute("INSERT INTO states VALUES (?, ?)", (turn.file, num_bytes))
    row = (session, tokens, *turn._replace(version=version))
    db.execute(
        f"INSERT INTO turns (session, tokens, {TURN}) VALUES ({', '.join('?' * len(row))})", row
    )
    return version


def copy_turns(db: sqlite3.Connection, source: int, target: int, version: int) -> None:
    """Give a session the turns of another up to a version; the state files are shared."""
    names = f"version, tokens, {TURN.removeprefix('version, ')}"
    db.execute(
        f"INSERT INTO turns (session, {names}) "
        f"SELECT ?, {names} FROM turns WHERE session = ? AND version <= ?",
        (target, source, version),
    )


def drop_states(db: sqlite3.Connection, session: int, versions: Sequence[int]) -> list[Unused]:
    """Keep these turns' tokens only; return the files to delete."""
    return _release(
        db,
        [(session, version) for version in versions],
        "UPDATE turns SET file = NULL WHERE session = ? AND version = ?",
    )


def drop_turns(db: sqlite3.Connection, session: int, after: int) -> list[Unused]:
    """Remove the turns after a version; return the files to delete."""
    rows = db.execute(
        "SELECT version FROM turns WHERE session = ? AND version > ?", (session, after)
    )
    return _release(
        db,
        [(session, version) for (version,) in rows],
        "DELETE FROM turns WHERE session = ? AND version = ?",
    )


def drop_session(db: sqlite3.Connection, session: int) -> list[Unused]:
    """Remove a session; return the files to delete."""
    files = drop_turns(db, session, -1)
    db.execute("DELETE FROM sessions WHERE id = ?", (session,))
    return files


def _release(
    db: sqlite3.Connection, turns: Sequence[tuple[int, int]], statement: str
) -> list[Unused]:
    files = []
    for turn in turns:
        row = db.execute("SELECT file FROM turns WHERE session = ? AND version = ?", turn)
        files += row.fetchall()
        db.execute(statement, turn)
    unused = (
        "DELETE FROM states WHERE file = ?1 "
        "AND NOT EXISTS (SELECT 1 FROM turns WHERE file = ?1) RETURNING file, bytes"
    )
    return [Unused(*row) for file in files for row in db.execute(unused, file).fetchall()]
