"""Sessions that outlive the process: continued by name, forked, rolled back, moved as files.

The bytes of a state are one file, which is never changed; the index names it. A turn is committed
by writing the file whole and then adding a row to the index: killed in between, a process leaves
the earlier versions as they were and a file that the next one sweeps away.
"""

import json
import sqlite3
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from retnet.model import DecoderState
from retnet.serve.sessions import index as rows
from retnet.serve.sessions.errors import (
    SessionError,
    SessionExists,
    SessionMissing,
    SessionRefused,
    VersionConflict,
)
from retnet.serve.sessions.expiry import expire
from retnet.serve.sessions.identity import Identity
from retnet.serve.sessions.index import Index, SessionRow, TurnRow, Unused
from retnet.serve.sessions.memory import Memory
from retnet.serve.sessions.state_file import (
    AGAIN,
    RESTORE,
    VOCABULARY,
    Snapshot,
    exported,
    imported,
    json_of,
    read_snapshot,
    refuse_fingerprint,
    snapshot_of,
    snapshot_tensors,
    write_snapshot,
)

LONGEST_NAME = 200
ORPHAN_S = 3600.0
"""A file that the index does not name after this long is a killed process's, not a slow one's."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much is kept.

    Attributes:
        memory_bytes: of states in memory, beside their files.
        disk_bytes: of all state files, which `expire` keeps to; None is no limit.
        max_age_s: since a session's last change, which `expire` keeps to; None is no limit.
        keep_states: of each session, the states of its newest turns, to which it can be rolled
            back; of the turns before, the tokens stay.
    """

    memory_bytes: int = 2**28
    disk_bytes: int | None = None
    max_age_s: float | None = None
    keep_states: int = 8

    def __post_init__(self) -> None:
        if self.keep_states < 1:
            raise ValueError(f"keep_states ({self.keep_states}) must be at least 1, the newest")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a turn adds to a session.

    Attributes:
        state: one row, after everything so far; on any device.
        tokens: what this turn has added to the text before the state.
        meta: whatever else belongs to the session now, JSON; replaces that of the turn before.
        logits: (V,) that follow the state, to go on without reading anything.
    """

    state: DecoderState
    tokens: Sequence[int]
    meta: Mapping[str, Any]
    logits: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A session at one of its turns.

    Attributes:
        state: one row, on the host; others may have it too, so it must not be modified.
        logits: (V,) that follow it; None if they were not kept.
        version: of the turn, which a commit names.
        num_tokens: of the text before the state.
        meta: as it was committed.
    """

    state: DecoderState
    logits: Tensor | None
    version: int
    num_tokens: int
    meta: dict[str, Any]
    text: bytes

    @property
    def tokens(self) -> list[int]:
        """The text before the state, made of its bytes at each call."""
        return np.frombuffer(self.text, "<u4").tolist()


@dataclass(frozen=True, kw_only=True)
class TurnInfo:
    """A turn in the history of a session.

    Attributes:
        version: of the session after it.
        num_tokens: of the text until then.
        meta: of the session then.
        created: seconds since 1970.
        kept: whether its state is, so that one can go back to it.
    """

    version: int
    num_tokens: int
    meta: dict[str, Any]
    created: float
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A session in a list.

    Attributes:
        name: unique among its owner's.
        version: of its newest turn.
        num_tokens: of its text.
        num_bytes: of its states' files; a fork shares those from before it.
        meta: of its newest turn.
        fingerprint: of its model.
        parent: where it was forked from, `name@version`; empty if nowhere.
        created: seconds since 1970.
        changed: likewise, its last turn, fork, rename or rollback; its age counts from here.
    """

    name: str
    version: int
    num_tokens: int
    num_bytes: int
    meta: dict[str, Any]
    fingerprint: str
    parent: str
    created: float
    changed: float


def check_name(name: str) -> None:
    """Refuse what cannot be a session's name.

    Raises:
        SessionError: it cannot.
    """
    if (
        not 1 <= len(name) <= LONGEST_NAME
        or not name.isprintable()
        or "/" in name
        or name in (".", "..")
    ):
        raise SessionError(
            f"name {name!r:.60} must have 1 to {LONGEST_NAME} printable characters and no "
            "slash, and not be . or ..; choose another"
        )


class SessionStore:
    """All sessions under a folder, for threads of this process and other processes alike.

    Every operation is the owner's alone: another's sessions are missing. All of them raise
    SessionMissing where there is no such session or version.
    """

    def __init__(self, folder: Path, identity: Identity, limits: Limits | None = None) -> None:
        """Open the folder, or make it, and sweep away what killed processes left.

        Args:
            folder: of the sessions; several models may share it.
            identity: of the model whose states these are, see `identify`.
            limits: how much is kept; None takes the defaults.
        """
        self._states = folder / "states"
        self._states.mkdir(parents=True, exist_ok=True)
        self._identity = identity
        self._limits = Limits() if limits is None else limits
        self.memory = Memory(self._limits.memory_bytes)
        self._index = Index(folder / "index.sqlite")
        self.sweep()

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def get(self, name: str, owner: str, version: int | None = None) -> Stored:
        """A session at its newest turn, or at another whose state is kept.

        Raises:
            SessionRefused: the state is another model's, or its file is damaged or altered.
        """
        tries = 0
        while True:
            with self._index.read() as db:
                session, turn = self._find(db, name, owner, version)
                text = rows.text_until(db, session.id, turn.version)
            assert turn.file is not None
            try:
                snapshot = self._snapshot(turn.file, f'session "{name}"')
            except FileNotFoundError:  # the turn was dropped since, or the file is lost
                tries += 1
                if tries < 3:
                    continue
                raise SessionRefused(
                    f'session "{name}": the state file {turn.file} is gone; {RESTORE}'
                ) from None
            return Stored(
                state=snapshot.state,
                logits=snapshot.logits,
                version=turn.version,
                num_tokens=turn.num_tokens,
                meta=json.loads(turn.meta),
                text=text,
            )

    def commit(self, name: str, owner: str, turn: Turn, expected_version: int | None) -> int:
        """Add a turn; when this returns, it is on disk.

        Args:
            name: of the session.
            owner: whose it is.
            turn: what is new.
            expected_version: that of the session which the turn continues; None for a new one.

        Returns:
            The new version.

        Raises:
            VersionConflict: another writer was first, or the session to make is there already.
            SessionRefused: the session is another model's.
            ValueError: the name, state, tokens or metadata cannot be stored.
        """
        meta, tokens = json_of(turn.meta), _text(turn.tokens)
        with self._index.read() as db:  # a late writer is refused before it writes
            self._expected(db, name, owner, expected_version)
        file, snapshot, num_bytes = self._write(Snapshot(turn.state, turn.logits))
        try:
            with self._index.write() as db:
                now = time.time()
                found = self._expected(db, name, owner, expected_version)
                if found is None:
                    session, before = self._add_session(db, name, owner, "", now), 0
                else:
                    session, before = found[0].id, found[1].num_tokens
                    db.execute("UPDATE sessions SET changed = ? WHERE id = ?", (now, session))
                num_tokens = before + len(turn.tokens)
                row = TurnRow(0, num_tokens, meta, now, file)
                version = rows.add_turn(db, session, tokens, row, num_bytes)
                kept = [old.version for old in rows.find_turns(db, session) if old.file is not None]
                unused = rows.drop_states(db, session, kept[: -self._limits.keep_states])
        except SessionError:
            self._remove([Unused(file, num_bytes)])
            raise
        self.memory.put(file, snapshot)
        self._remove(unused)
        return version

    def fork(self, name: str, new_name: str, owner: str, version: int | None = None) -> int:
        """Make a second session of a first, as it is or was; it costs a few rows of the index.

        Returns:
            The version that both have in common.

        Raises:
            SessionExists: the new name is taken.
        """
        with self._index.write() as db:
            session, turn = self._find(db, name, owner, version)
            parent = f"{name}@{turn.version}"
            new = self._add_session(db, new_name, owner, parent, time.time())
            rows.copy_turns(db, session.id, new, turn.version)
        return turn.version

    def rename(self, name: str, new_name: str, owner: str) -> None:
        """Give a session another name.

        Raises:
            SessionExists: that is taken.
        """
        with self._index.write() as db:
            session = self._session(db, name, owner)
            if new_name != name:
                self._refuse_name(db, new_name, owner)
            db.execute(
                "UPDATE sessions SET name = ?, changed = ? WHERE id = ?",
                (new_name, time.time(), session.id),
            )

    def delete(self, name: str, owner: str) -> None:
        """Remove a session and the states that no fork shares."""
        with self._index.write() as db:
            unused = rows.drop_session(db, self._session(db, name, owner).id)
        self._remove(unused)

    def turns(self, name: str, owner: str) -> tuple[TurnInfo, ...]:
        """The history of a session, the oldest turn first."""
        with self._index.read() as db:
            found = rows.find_turns(db, self._session(db, name, owner).id)
        return tuple(
            TurnInfo(
                version=turn.version,
                num_tokens=turn.num_tokens,
                meta=json.loads(turn.meta),
                created=turn.created,
                kept=turn.file is not None,
            )
            for turn in found
        )

    def rollback(self, name: str, owner: str, version: int) -> int:
        """Remove the turns after a version, whose state must still be kept; return the version."""
        with self._index.write() as db:
            session, turn = self._find(db, name, owner, version)
            unused = rows.drop_turns(db, session.id, turn.version)
            db.execute("UPDATE sessions SET changed = ? WHERE id = ?", (time.time(), session.id))
        self._remove(unused)
        return turn.version

    def export(self, name: str, owner: str, version: int | None = None) -> bytes:
        """A session as one safetensors file: state, tokens and metadata, without its turns."""
        stored = self.get(name, owner, version)
        tensors = snapshot_tensors(Snapshot(stored.state, stored.logits))
        tokens = np.frombuffer(stored.text, "<u4")
        return exported(tensors, tokens, json_of(stored.meta), self._identity)

    def import_(self, data: bytes, name: str, owner: str) -> int:
        """Make a session of one turn of what `export` returned, here or elsewhere.

        Raises:
            SessionRefused: it is another model's, or is not as it was written.
            SessionExists: the name is taken.
        """
        found = imported(data, self._identity)
        if found.tokens is None:
            raise SessionRefused(
                f"the file has no list of tokens; {AGAIN}, or send it as a request's state"
            )
        turn = Turn(
            state=found.snapshot.state,
            tokens=found.tokens,
            meta=found.meta,
            logits=found.snapshot.logits,
        )
        return self.commit(name, owner, turn, None)

    def list(self, owner: str, limit: int = 100, after: str = "") -> tuple[Listed, ...]:
        """An owner's sessions by name; the next page begins after the last name of this one."""
        size = "(SELECT sum(bytes) FROM states JOIN turns USING (file) WHERE session = sessions.id)"
        with self._index.read() as db:
            found = db.execute(
                f"SELECT name, version, num_tokens, {size}, meta, fingerprint, parent, "
                "sessions.created, changed "
                f"FROM sessions JOIN turns ON session = sessions.id AND {rows.HEAD} "
                "WHERE owner = ? AND name > ? ORDER BY name LIMIT ?",
                (owner, after, limit),
            ).fetchall()
        names = Listed.__dataclass_fields__
        listed = [dict(zip(names, row, strict=True)) for row in found]
        return tuple(Listed(**{**row, "meta": json.loads(row["meta"])}) for row in listed)

    def expire(self, now: float | None = None) -> tuple[tuple[str, str], ...]:
        """Remove what is over the limits of age and size, see `retnet.serve.sessions.expiry`.

        Args:
            now: seconds since 1970; None is now.

        Returns:
            Owner and name of each session that is gone.
        """
        now = time.time() if now is None else now
        with self._index.write() as db:
            gone, unused = expire(db, now, self._limits.max_age_s, self._limits.disk_bytes)
        self._remove(unused)
        self.sweep()
        return tuple(gone)

    def sweep(self) -> int:
        """Delete files that killed processes left; return how many."""
        old = time.time() - ORPHAN_S
        found = {path.name: path for path in self._states.iterdir() if _changed_before(path, old)}
        with self._index.read() as db:
            named = {file for (file,) in db.execute("SELECT file FROM states")}
        orphans = [Unused(file, 0) for file in found.keys() - named]
        self._remove(orphans)
        return len(orphans)

    def _session(self, db: sqlite3.Connection, name: str, owner: str) -> SessionRow:
        session = rows.find_session(db, owner, name)
        if session is None:
            raise SessionMissing(
                f'there is no session "{name:.{LONGEST_NAME}}"; list those there are'
            )
        return session

    def _find(
        self, db: sqlite3.Connection, name: str, owner: str, version: int | None
    ) -> tuple[SessionRow, TurnRow]:
        """A session and a turn of it whose state is kept."""
        session = self._session(db, name, owner)
        turn = rows.find_turn(db, session.id, version)
        if turn is None or turn.file is None:
            found = rows.find_turns(db, session.id)
            kept = [old.version for old in found if old.file is not None]
            raise SessionMissing(
                f'session "{name}" has no state of version {version}; it keeps those of {kept}'
            )
        self._refuse_model(session)
        return session, turn

    def _expected(
        self, db: sqlite3.Connection, name: str, owner: str, version: int | None
    ) -> tuple[SessionRow, TurnRow] | None:
        """The session that a commit goes on from, which must be as the writer knew it."""
        if version is None:
            self._refuse_name(db, name, owner)
            return None
        session = self._session(db, name, owner)
        self._refuse_model(session)
        turn = rows.find_turn(db, session.id, None)
        assert turn is not None
        if turn.version != version:
            raise VersionConflict(
                f'session "{name}" is at version {turn.version}, and this turn continues '
                f"{version}: another writer was first; read it again, or fork it"
            )
        return session, turn

    def _refuse_name(self, db: sqlite3.Connection, name: str, owner: str) -> None:
        check_name(name)
        if rows.find_session(db, owner, name) is not None:
            raise SessionExists(f'there is a session "{name}" already; choose another name')

    def _refuse_model(self, session: SessionRow) -> None:
        what = f'session "{session.name}"'
        refuse_fingerprint(session.fingerprint, session.config, self._identity, what)

    def _add_session(
        self, db: sqlite3.Connection, name: str, owner: str, parent: str, now: float
    ) -> int:
        self._refuse_name(db, name, owner)
        whose = self._identity
        row = SessionRow(0, owner, name, whose.fingerprint, whose.config, parent, now, now)
        return rows.add_session(db, row)

    def _snapshot(self, file: str, what: str) -> Snapshot:
        found = self.memory.get(file)
        if found is None:
            try:
                found = read_snapshot(self._states / file, self._identity)
            except SessionRefused as error:
                raise SessionRefused(f"{what}: {error}") from None
            self.memory.put(file, found)
        return found

    def _write(self, snapshot: Snapshot) -> tuple[str, Snapshot, int]:
        """Write a state under a new name; return that, our own copy, and the file's bytes."""
        if len(snapshot.state.position) != 1:
            raise ValueError(
                f"the state has {len(snapshot.state.position)} rows and a session has one; "
                "select_rows picks it"
            )
        tensors = snapshot_tensors(snapshot)
        own = snapshot_of(tensors, self._identity, "the state to store")
        file = f"{uuid.uuid4().hex}.safetensors"
        path = self._states / file
        write_snapshot(path, tensors, self._identity)
        return file, own, path.stat().st_size

    def _remove(self, unused: Sequence[Unused]) -> None:
        for file, _ in unused:
            self.memory.drop(file)
            (self._states / file).unlink(missing_ok=True)


def _changed_before(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime < moment
    except FileNotFoundError:  # another process removed it
        return False


def _text(tokens: Sequence[int]) -> bytes:
    wide = np.asarray(tokens, dtype=np.int64)
    if wide.size and not 0 <= wide.min() <= wide.max() < VOCABULARY:
        raise ValueError(f"tokens go from {wide.min()} to {wide.max()}; ids are 0 to {VOCABULARY}")
    return wide.astype("<u4").tobytes()
