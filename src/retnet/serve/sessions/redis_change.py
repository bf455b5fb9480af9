"""A change to sessions in Redis, and how they are written there; see `redis_records.py`."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from redis.client import Pipeline
from redis.exceptions import OutOfMemoryError, WatchError

from retnet.serve.sessions.errors import SessionsUnavailable
from retnet.serve.sessions.records import LOST, Head, Kept, Key, NewTurn, TurnRow

PREFIX = "retnet:"
CHANGED, VERSION, BYTES = f"{PREFIX}changed", f"{PREFIX}version", f"{PREFIX}bytes"

UNLESS_CHANGED = """
local at = 2
for _ = 1, tonumber(ARGV[1]) do
    if (redis.call('HGET', ARGV[at], ARGV[at + 1]) or '') ~= ARGV[at + 2] then
        return 0
    end
    at = at + 3
end
redis.call('UNLINK', '')
while at <= #ARGV do
    local size = tonumber(ARGV[at])
    redis.call(unpack(ARGV, at + 1, at + size))
    at = at + size + 1
end
return 1
"""
"""Fields that were read, with their values, and then commands, each with its length.

Redis that is full asks only of a script's first write whether it may take memory.
"""


class RedisChange:
    """See `Change`: reads at once, and keeps what it writes until it is sent."""

    def __init__(self, pipe: Pipeline) -> None:
        """Begin on a pipeline that has nothing in it."""
        self._pipe: Any = pipe  # its answers come at once while it watches
        self._heads: dict[Key, Head] = {}
        self._writes: list[tuple[Any, ...]] = []
        self._read: list[tuple[Any, ...]] = []
        self._grows = False
        self.dropped: list[Kept] = []

    def head(self, key: Key) -> Head | None:
        """Read and watch a session."""
        self._pipe.watch(session_key(key), names_key(key.owner))
        raw = self._pipe.hget(session_key(key), "head")
        named = raw is None and self._pipe.zscore(names_key(key.owner), key.name) is not None
        head = head_of(raw, named)
        if head is not None:
            self._heads[key] = head
            self._read.append((session_key(key), "head", raw or ""))
        return head

    def num_bytes(self) -> int:
        """Of all states together, watched."""
        self._pipe.watch(BYTES)
        return int(self._pipe.get(BYTES) or 0)

    def begin(self, key: Key, head: Head) -> None:
        """Add a session without turns."""
        self._grows = True
        self._later("ZADD", names_key(key.owner), 0, key.name)
        self._put(key, head)

    def append(self, key: Key, turn: NewTurn) -> int:
        """Add a turn and its state."""
        self._grows = True
        head, kept = self._heads[key], turn.state.kept
        version = int(self._pipe.incr(VERSION))
        if version <= head.version:
            raise SessionsUnavailable(
                f"Redis has lost the counter of versions ({version} after {head.version}); restore "
                "it from a backup"
            )
        row = json.dumps([turn.num_tokens, turn.meta, turn.created])
        self._later(
            "HSET", session_key(key), f"turn:{version}", row, f"text:{version}", turn.tokens
        )
        self._later("HSET", state_key(kept.state), "data", turn.state.data, "uses", 1)
        self._later("INCRBY", BYTES, kept.num_bytes)
        self._put(
            key,
            head._replace(
                version=version,
                num_tokens=turn.num_tokens,
                meta=turn.meta,
                changed=turn.created,
                states={**head.states, version: kept},
            ),
        )
        return version

    def forget(self, key: Key, versions: Sequence[int]) -> None:
        """Let these states go."""
        head = self._heads[key]
        for version in versions:
            self._release(head.states[version])
        left = {version: kept for version, kept in head.states.items() if version not in versions}
        if versions:
            self._put(key, head._replace(states=left))

    def cut(self, key: Key, version: int, changed: float) -> None:
        """Remove the turns after one."""
        head = self._until(key, version)
        self.forget(key, [later for later in head.states if later > version])
        fields = [name for name in self._pipe.hkeys(session_key(key)) if version_of(name) > version]
        if fields:
            self._later("HDEL", session_key(key), *fields)
        states = {old: kept for old, kept in head.states.items() if old <= version}
        self._put(key, head._replace(states=states, changed=changed))

    def remove(self, key: Key) -> None:
        """Remove a session."""
        for kept in self._heads.pop(key).states.values():
            self._release(kept)
        self._later("UNLINK", session_key(key))
        self._later("ZREM", names_key(key.owner), key.name)
        self._later("ZREM", CHANGED, member_of(key))

    def copy(self, key: Key, version: int, new: Key, head: Head) -> None:
        """Begin a session with turns of another."""
        self._grows = True
        source = self._until(key, version)
        fields = {
            name: value
            for name, value in self._pipe.hgetall(session_key(key)).items()
            if 0 < version_of(name) <= version
        }
        states = {}
        for old, kept in source.states.items():
            if old <= version and self._uses(kept) is not None:
                self._later("HINCRBY", state_key(kept.state), "uses", 1)
                states[old] = kept
        self._later("HSET", session_key(new), *chain.from_iterable(fields.items()))
        self._later("ZADD", names_key(new.owner), 0, new.name)
        self._put(
            new,
            source._replace(
                parent=head.parent, created=head.created, changed=head.changed, states=states
            ),
        )

    def rename(self, key: Key, new: Key, changed: float) -> None:
        """Give a session another key."""
        head = self._heads.pop(key)
        if new != key:
            self._later("RENAME", session_key(key), session_key(new))
            self._later("ZREM", names_key(key.owner), key.name)
            self._later("ZREM", CHANGED, member_of(key))
        self._later("ZADD", names_key(new.owner), 0, new.name)
        self._put(new, head._replace(changed=changed))

    def send(self) -> None:
        """Make the change, if nothing that was read has changed.

        Raises:
            redis.WatchError: something has, or Redis was lost.
        """
        if not self._writes:
            return
        self._pipe.multi()
        for command in self._writes:
            self._pipe.execute_command(*command)
        try:
            self._pipe.execute()
        except OutOfMemoryError:
            if self._grows:
                raise
            self._make_room()

    def _make_room(self) -> None:
        """Make a change that only drops: Redis that is full takes a script, and no MULTI."""
        words: list[Any] = [len(self._read)]
        for read in self._read:
            words += read
        for command in self._writes:
            words += [len(command), *command]
        if not self._pipe.immediate_execute_command("EVAL", UNLESS_CHANGED, 0, *words):
            raise WatchError("another was first")

    def _later(self, *command: Any) -> None:
        self._writes.append(command)

    def _put(self, key: Key, head: Head) -> None:
        self._heads[key] = head
        self._later("HSET", session_key(key), "head", write_head(head))
        self._later("ZADD", CHANGED, repr(head.changed), member_of(key))

    def _until(self, key: Key, version: int) -> Head:
        """The head as it was after a turn, with all states."""
        row = turn_of(version, self._pipe.hget(session_key(key), f"turn:{version}"), kept=True)
        return self._heads[key]._replace(version=version, num_tokens=row.num_tokens, meta=row.meta)

    def _uses(self, kept: Kept) -> int | None:
        self._pipe.watch(state_key(kept.state))
        uses = self._pipe.hget(state_key(kept.state), "uses")
        self._read.append((state_key(kept.state), "uses", uses or ""))
        return None if uses is None else int(uses)

    def _release(self, kept: Kept) -> None:
        uses = self._uses(kept)
        if uses is not None and uses > 1:
            self._later("HINCRBY", state_key(kept.state), "uses", -1)
            return
        self._later("UNLINK", state_key(kept.state))
        self._later("DECRBY", BYTES, kept.num_bytes)
        self.dropped.append(kept)


def member_of(key: Key) -> str:
    """A key as one text; the owner's length says where the name begins."""
    return f"{len(key.owner)}:{key.owner}:{key.name}"


def key_of(member: bytes) -> Key:
    """The key that `member_of` made it of."""
    length, rest = member.decode().split(":", 1)
    return Key(rest[: int(length)], rest[int(length) + 1 :])


def session_key(key: Key) -> str:
    """Where a session is."""
    return f"{PREFIX}session:{member_of(key)}"


def names_key(owner: str) -> str:
    """Where an owner's names are."""
    return f"{PREFIX}names:{owner}"


def state_key(state: str) -> str:
    """Where a state is."""
    return f"{PREFIX}state:{state}"


def write_head(head: Head) -> str:
    """A head as JSON."""
    return json.dumps(head._replace(states=list(head.states.items()))._asdict())  # type: ignore[arg-type]


def read_head(raw: bytes) -> Head:
    """What `write_head` wrote."""
    fields = json.loads(raw)
    states = {version: Kept(*kept) for version, kept in fields.pop("states")}
    return Head(**fields, states=states)


def head_of(raw: bytes | None, named: bool) -> Head | None:
    """A session, of what its key holds and whether its name is known."""
    if raw is not None:
        return read_head(raw)
    return LOST if named else None


def version_of(field: bytes) -> int:
    """Of the turn that a field is of; 0 for the head."""
    _, _, version = field.partition(b":")
    return int(version or 0)


def turns_of(head: Head, fields: Mapping[bytes, bytes]) -> list[TurnRow]:
    """The turns of a session, of all that its key holds."""
    versions = sorted(version_of(name) for name in fields if name.startswith(b"turn:"))
    return [
        turn_of(version, fields[b"turn:%d" % version], kept=version in head.states)
        for version in versions
    ]


def turn_of(version: int, raw: bytes, *, kept: bool) -> TurnRow:
    """A turn, of its field."""
    num_tokens, meta, created = json.loads(raw)
    return TurnRow(version, num_tokens, meta, created, kept)
