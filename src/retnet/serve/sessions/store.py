"""Sessions that outlive the process: continued by name, forked, rolled back, moved as files.

What must hold of a session is said here, once; `records.py` says what the place where they are kept
must do, and a folder and Redis do it. A turn is committed in one transaction there: killed before
its end, a process leaves the versions before as they were.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retnet.serve.sessions.errors import (
    SessionExists,
    SessionMissing,
    SessionRefused,
    VersionConflict,
)
from retnet.serve.sessions.expiry import expire
from retnet.serve.sessions.folder import Folder
from retnet.serve.sessions.identity import Identity
from retnet.serve.sessions.memory import Memory
from retnet.serve.sessions.names import LONGEST_NAME, check_name, encodable
from retnet.serve.sessions.records import (
    Change,
    Found,
    Head,
    Kept,
    Key,
    NewTurn,
    Records,
    TurnRow,
)
from retnet.serve.sessions.state_file import (
    AGAIN,
    RESTORE,
    VOCABULARY,
    Snapshot,
    exported,
    imported,
    json_of,
    refuse_fingerprint,
    refuse_other,
    sealed_for,
    snapshot_of,
    snapshot_tensors,
)
from retnet.serve.sessions.values import Limits, Listed, Stored, Turn, TurnInfo

REDIS = ("redis://", "rediss://", "unix://")


class SessionStore:
    """All sessions in one place, for threads of this process and other processes alike.

    Every operation is the owner's alone: another's sessions are missing. All of them raise
    SessionMissing where there is no such session or version, and SessionsUnavailable where the
    place cannot be reached or is full.
    """

    def __init__(self, place: Path | str, identity: Identity, limits: Limits | None = None) -> None:
        """Open the place, or make it, and sweep away what killed processes left.

        Args:
            place: a folder, or the address of a Redis server such as `redis://127.0.0.1:6379/0`;
                several models may share it.
            identity: of the model whose states these are, see `identify`.
            limits: how much is kept; None takes the defaults.
        """
        self._records = _open(place)
        self._identity = identity
        self._limits = Limits() if limits is None else limits
        self.memory = Memory(self._limits.memory_bytes)
        self.sweep()

    def close(self) -> None:
        """Let go of files and connections."""
        self._records.close()

    def get(self, name: str, owner: str, version: int | None = None) -> Stored:
        """A session at its newest turn, or at another whose state is kept.

        Raises:
            SessionRefused: the state is another model's, or is damaged or altered.
        """
        key = _known(name, owner)
        tries = 0
        while True:
            head, turn, text = self._found(key, version)
            try:
                snapshot = self._snapshot(head.states[turn.version], f'session "{name}"')
            except FileNotFoundError:  # the turn was dropped since, or the state is lost
                tries += 1
                if tries < 3:
                    continue
                raise SessionRefused(
                    f'session "{name}": the state {head.states[turn.version].state} is gone; '
                    f"{RESTORE}"
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
        """Add a turn; when this returns, it is kept.

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
        key = Key(owner, name)
        meta, tokens = json_of(turn.meta), _text(turn.tokens)
        if expected_version is None:
            check_name(name)
        own, tensors = self._own(Snapshot(turn.state, turn.logits))
        # a late writer is refused before it writes
        self._refuse_late(self._records.head(key), key, expected_version)
        with self._records.stage(tensors, sealed_for(tensors, self._identity)) as staged:

            def work(change: Change) -> tuple[int, list[Kept]]:
                head, now = change.head(key), time.time()
                self._refuse_late(head, key, expected_version)
                if head is None:
                    head = self._new_head(now, parent="")
                    change.begin(key, head)
                num_tokens = head.num_tokens + len(turn.tokens)
                moment = max(now, head.changed)  # clocks may go backwards
                version = change.append(key, NewTurn(tokens, num_tokens, meta, moment, staged))
                change.forget(key, [*head.states, version][: -self._limits.keep_states])
                return version, change.dropped

            version, dropped = self._records.change(work)
        self.memory.put(staged.kept.state, own)
        self._forget(dropped)
        return version

    def fork(self, name: str, new_name: str, owner: str, version: int | None = None) -> int:
        """Make a second session of a first, as it is or was; it copies no state.

        Returns:
            The version that both have in common.

        Raises:
            SessionExists: the new name is taken.
        """
        key, new = _known(name, owner), Key(owner, new_name)
        check_name(new_name)

        def work(change: Change) -> int:
            common, _ = self._kept(change.head(key), key, version)
            _refuse_taken(change.head(new), new_name)
            head = self._new_head(time.time(), parent=f"{name}@{common}")
            change.copy(key, common, new, head)
            return common

        return self._records.change(work)

    def rename(self, name: str, new_name: str, owner: str) -> None:
        """Give a session another name.

        Raises:
            SessionExists: that is taken.
        """
        key, new = _known(name, owner), Key(owner, new_name)

        def work(change: Change) -> None:
            head = _there(change.head(key), name)
            if new != key:
                check_name(new_name)
                _refuse_taken(change.head(new), new_name)
            change.rename(key, new, max(time.time(), head.changed))

        self._records.change(work)

    def delete(self, name: str, owner: str) -> None:
        """Remove a session and the states that no fork shares."""
        key = _known(name, owner)

        def work(change: Change) -> list[Kept]:
            if change.head(key) is None:
                raise _missing(name)
            change.remove(key)
            return change.dropped

        self._forget(self._records.change(work))

    def turns(self, name: str, owner: str) -> tuple[TurnInfo, ...]:
        """The history of a session, the oldest turn first."""
        found = self._records.turns(_known(name, owner))
        if found is None:
            raise _missing(name)
        if not found:
            raise _lost(name)
        return tuple(
            TurnInfo(
                version=turn.version,
                num_tokens=turn.num_tokens,
                meta=json.loads(turn.meta),
                created=turn.created,
                kept=turn.kept,
            )
            for turn in found
        )

    def rollback(self, name: str, owner: str, version: int) -> int:
        """Remove the turns after a version, whose state must still be kept; return the version."""
        key = _known(name, owner)

        def work(change: Change) -> list[Kept]:
            head = change.head(key)
            common, head = self._kept(head, key, version)
            change.cut(key, common, max(time.time(), head.changed))
            return change.dropped

        self._forget(self._records.change(work))
        return version

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
        return tuple(
            Listed(
                name=name,
                version=head.version,
                num_tokens=head.num_tokens,
                num_bytes=sum(kept.num_bytes for kept in head.states.values()),
                meta=json.loads(head.meta),
                fingerprint=head.fingerprint,
                parent=head.parent,
                created=head.created,
                changed=head.changed,
            )
            for name, head in self._records.page(owner, limit, encodable(after))
        )

    def expire(self, now: float | None = None) -> tuple[tuple[str, str], ...]:
        """Remove what is over the limits of age and size, see `retnet.serve.sessions.expiry`.

        Args:
            now: seconds since 1970; None is now.

        Returns:
            Owner and name of each session that is gone.
        """
        now = time.time() if now is None else now
        gone = expire(self._records, now, self._limits.max_age_s, self._limits.disk_bytes)
        self._forget(gone.states)
        self.sweep()
        return tuple(gone.sessions)

    def sweep(self) -> int:
        """Delete what killed processes left; return how many states."""
        return self._records.sweep()

    def _found(self, key: Key, version: int | None) -> tuple[Head, TurnRow, bytes]:
        found: Found | None = self._records.find(key, version)
        _, head = self._kept(None if found is None else found.head, key, version)
        assert found is not None
        assert found.turn is not None
        return head, found.turn, found.text

    def _kept(self, head: Head | None, key: Key, version: int | None) -> tuple[int, Head]:
        """A version whose state is kept; None is the newest."""
        head = _there(head, key.name)
        wanted = head.version if version is None else version
        if wanted not in head.states:
            raise SessionMissing(
                f'session "{key.name}" has no state of version {wanted}; it keeps those of '
                f"{[*head.states]}"
            )
        self._refuse_model(head, key.name)
        return wanted, head

    def _refuse_late(self, head: Head | None, key: Key, version: int | None) -> None:
        """Refuse a commit unless the session is as the writer knew it."""
        if version is None:
            _refuse_taken(head, key.name)
            return
        head = _there(head, key.name)
        self._refuse_model(head, key.name)
        if head.version != version:
            raise VersionConflict(
                f'session "{key.name}" is at version {head.version}, and this turn continues '
                f"{version}: another writer was first; read it again, or fork it"
            )

    def _refuse_model(self, head: Head, name: str) -> None:
        refuse_fingerprint(head.fingerprint, head.config, self._identity, f'session "{name}"')

    def _new_head(self, now: float, parent: str) -> Head:
        return Head(self._identity.fingerprint, self._identity.config, parent, now, now)

    def _snapshot(self, kept: Kept, what: str) -> Snapshot:
        found = self.memory.get(kept.state)
        if found is None:
            try:
                metadata, tensors = self._records.load(kept.state)
                refuse_other(metadata, tensors, self._identity, f"state {kept.state}", RESTORE)
                found = snapshot_of(tensors, self._identity, f"state {kept.state}")
            except SessionRefused as error:
                raise SessionRefused(f"{what}: {error}") from None
            self.memory.put(kept.state, found)
        return found

    def _own(self, snapshot: Snapshot) -> tuple[Snapshot, dict[str, Any]]:
        """A copy of a state that fits this model, and its tensors by their names in a file."""
        if len(snapshot.state.position) != 1:
            raise ValueError(
                f"the state has {len(snapshot.state.position)} rows and a session has one; "
                "select_rows picks it"
            )
        tensors = snapshot_tensors(snapshot)
        return snapshot_of(tensors, self._identity, "the state to store"), tensors

    def _forget(self, dropped: Sequence[Kept]) -> None:
        for kept in dropped:
            self.memory.drop(kept.state)


def _open(place: Path | str) -> Records:
    if not isinstance(place, str) or not place.startswith(REDIS):
        return Folder(Path(place))
    try:
        from retnet.serve.sessions.redis_records import RedisRecords
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; pip install 'retnet[redis]'") from error
    return RedisRecords(place)


def _known(name: str, owner: str) -> Key:
    """A key to look up; no session has a name that cannot be written down."""
    if encodable(name) != name:
        raise _missing(encodable(name))
    return Key(owner, name)


def _missing(name: str) -> SessionMissing:
    return SessionMissing(f'there is no session "{name:.{LONGEST_NAME}}"; list those there are')


def _lost(name: str) -> SessionRefused:
    return SessionRefused(
        f'session "{name}": its record is lost, though its name is known; restore it from a '
        "backup, or delete it"
    )


def _there(head: Head | None, name: str) -> Head:
    if head is None:
        raise _missing(name)
    if head.version == 0:
        raise _lost(name)
    return head


def _refuse_taken(head: Head | None, name: str) -> None:
    if head is not None:
        raise SessionExists(f'there is a session "{name}" already; choose another name')


def _text(tokens: Sequence[int]) -> bytes:
    wide = np.asarray(tokens, dtype=np.int64)
    if wide.size and not 0 <= wide.min() <= wide.max() < VOCABULARY:
        raise ValueError(f"tokens go from {wide.min()} to {wide.max()}; ids are 0 to {VOCABULARY}")
    return wide.astype("<u4").tobytes()
