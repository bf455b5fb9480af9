"""Sessions in a Redis server: one hash for each session, and one for each state.

| key | holds |
|---|---|
| `retnet:session:OWNER:NAME` | `head`; for each turn `turn:VERSION` and `text:VERSION` |
| `retnet:state:STATE` | `data`, a safetensors file; `uses`, how many sessions need it |
| `retnet:names:OWNER` | the owner's names, sorted |
| `retnet:changed` | all sessions by when they changed |
| `retnet:version`, `retnet:bytes` | the last version that was given; bytes of all states |

A change is optimistic: it watches what it reads, then sends everything that it writes, the bytes of
a state among it, as one MULTI that Redis takes whole, or not at all where something watched has
changed since. So a killed process leaves nothing behind, and Redis that is full refuses the whole.
"""

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry
from torch import Tensor

from retnet.serve.sessions.errors import SessionError, SessionsUnavailable
from retnet.serve.sessions.records import LOST, Change, Found, Head, Kept, Key, Staged, TurnRow
from retnet.serve.sessions.redis_change import (
    CHANGED,
    PREFIX,
    RedisChange,
    head_of,
    key_of,
    names_key,
    read_head,
    session_key,
    state_key,
    turns_of,
)
from retnet.serve.sessions.state_file import RESTORE, parsed, state_bytes_of

PASSWORD_VARIABLE = "RETNET_REDIS_PASSWORD"
FORMAT = b"1"

PATIENCE_S = 30.0
"""How long Redis may take for one answer; a state may be hundreds of megabytes."""

LARGEST_STATE = 512 << 20
"""Redis takes no larger value (proto-max-bulk-len)."""

Result = TypeVar("Result")

log = logging.getLogger("retnet.serve")


class RedisRecords:
    """A Redis server that any number of processes on any machines share."""

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            SessionsUnavailable: it cannot be reached.
            SessionError: it may drop sessions by itself, or those of another program are there.
        """
        self._redis = redis.Redis.from_url(
            address,
            password=os.environ.get(PASSWORD_VARIABLE),
            socket_timeout=PATIENCE_S,
            socket_connect_timeout=5.0,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3),
        )
        with self._told():
            self._refuse_forgetful()
            found = self._redis.get(f"{PREFIX}format")
            if found is None:
                self._redis.setnx(f"{PREFIX}format", FORMAT)
                found = self._redis.get(f"{PREFIX}format")
        if found != FORMAT:
            raise SessionError(
                f"the sessions in Redis have format {found!r}, and this program reads {FORMAT!r}; "
                "the version that wrote them reads them"
            )

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def change(self, work: Callable[[Change], Result]) -> Result:
        """See `Records`."""
        deadline = monotonic() + PATIENCE_S
        while monotonic() < deadline:
            with self._told(), self._redis.pipeline() as pipe:
                change = RedisChange(pipe)
                try:
                    result = work(change)
                except redis.WatchError:  # Redis was lost, and may be there again
                    continue
                try:
                    change.send()
                except redis.WatchError as error:
                    lost = error.__context__
                    if isinstance(lost, redis.ConnectionError | redis.TimeoutError):
                        raise SessionsUnavailable(
                            f"Redis was lost in the middle of a change ({lost}), and whether that "
                            "was made is not known; read the session before you send it again"
                        ) from None
                    continue  # another was first: look again
                return result
        raise SessionsUnavailable(
            f"others changed the session again and again for {PATIENCE_S:g} seconds; try again"
        )

    def head(self, key: Key) -> Head | None:
        """See `Records`."""
        with self._told(), self._redis.pipeline() as pipe:
            return RedisChange(pipe).head(key)

    def find(self, key: Key, version: int | None) -> Found | None:
        """See `Records`."""
        fields, head = self._all(key)
        if head is None:
            return None
        version = head.version if version is None else version
        turns = {turn.version: turn for turn in turns_of(head, fields)}
        if version not in turns:
            return Found(head, None, b"")
        texts = (fields.get(b"text:%d" % old) for old in sorted(turns) if old <= version)
        return Found(head, turns[version], b"".join(text for text in texts if text is not None))

    def turns(self, key: Key) -> list[TurnRow] | None:
        """See `Records`."""
        fields, head = self._all(key)
        return None if head is None else turns_of(head, fields)

    def page(self, owner: str, limit: int, after: str) -> list[tuple[str, Head]]:
        """See `Records`."""
        start = f"({after}" if after else "-"
        with self._told():
            found: Any = self._redis.zrangebylex(names_key(owner), start, "+", start=0, num=limit)
            names = [name.decode() for name in found]
            with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hget(session_key(Key(owner, name)), "head")
                heads = pipe.execute()
        return [
            (name, LOST if head is None else read_head(head))
            for name, head in zip(names, heads, strict=True)
        ]

    def oldest(self) -> list[tuple[Key, float]]:
        """See `Records`."""
        with self._told():
            found: Any = self._redis.zrange(CHANGED, 0, -1, withscores=True)
        return [(key_of(member), score) for member, score in found]

    @contextmanager
    def stage(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[Staged]:
        """Make the bytes that go with the turn."""
        data = state_bytes_of(tensors, metadata)
        if len(data) > LARGEST_STATE:
            raise SessionError(
                f"the state has {len(data):,} bytes and Redis takes {LARGEST_STATE:,}; keep "
                "sessions in a folder"
            )
        yield Staged(Kept(uuid.uuid4().hex, len(data)), data)

    def load(self, state: str) -> tuple[dict[str, str], dict[str, Tensor]]:
        """See `Records`."""
        with self._told():
            data: Any = self._redis.hget(state_key(state), "data")
        if data is None:
            raise FileNotFoundError(state)
        return parsed(data, f"state {state}", RESTORE)

    def sweep(self) -> int:
        """Nothing is ever left over."""
        return 0

    def _all(self, key: Key) -> tuple[dict[bytes, bytes], Head | None]:
        """All that a session's key holds, which is one answer, and its head."""
        with self._told():
            fields: Any = self._redis.hgetall(session_key(key))
            named = not fields and self._redis.zscore(names_key(key.owner), key.name) is not None
            if named:  # unless it was added since
                fields = self._redis.hgetall(session_key(key))
        return fields, head_of(fields.get(b"head"), named)

    def _refuse_forgetful(self) -> None:
        """Refuse a server that drops keys when it is full, and warn of one that writes no log."""
        try:
            told: Any = {**self._redis.info("memory"), **self._redis.info("persistence")}  # type: ignore[dict-item]
        except NoPermissionError:  # then it is the operator's to know
            return
        policy = told.get("maxmemory_policy", "noeviction")
        if told.get("maxmemory", 0) and str(policy).startswith("allkeys"):
            raise SessionError(
                f"Redis has maxmemory-policy {policy}: when it is full it would drop sessions; set "
                "it to noeviction, and give expiry a limit below maxmemory"
            )
        if not told.get("aof_enabled", 0):
            log.warning(
                '{"event": "redis_not_durable", "message": "Redis has appendonly no: turns are '
                'lost when it ends; set appendonly yes and appendfsync always"}'
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what is wrong with Redis in words for the user."""
        try:
            yield
        except redis.RedisError as error:
            full = isinstance(error, redis.OutOfMemoryError) or "OOM" in str(error)
            reason = "Redis is full" if full else "Redis does not do as asked"
            if isinstance(error, redis.ConnectionError | redis.TimeoutError):
                reason = "Redis cannot be reached"
            raise SessionsUnavailable(
                f"{reason} ({error}); what was kept is as it was: try again"
            ) from error
