"""What only a Redis server can do to sessions."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from redis_server import STATE, RedisServer, running
from retnet.serve.sessions import (
    Identity,
    Limits,
    SessionError,
    SessionExists,
    SessionMissing,
    SessionRefused,
    SessionStore,
    SessionsUnavailable,
    redis_records,
)
from session_support import commit_turns, equal_states, made_state, made_turn

Open = Callable[..., SessionStore]
SESSION = "retnet:session:0::text"


@pytest.fixture
def open_store(redis_server: RedisServer, identity: Identity) -> Iterator[Open]:
    stores: list[SessionStore] = []

    def call(address: str = redis_server.address, **limits: Any) -> SessionStore:
        stores.append(SessionStore(address, identity, Limits(**limits)))
        return stores[-1]

    yield call
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store: Open) -> SessionStore:
    return open_store()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server to be killed, that keeps what it has said it keeps."""
    with running(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


def test_a_change_that_another_overtakes_looks_again(open_store: Open, identity: Identity) -> None:
    """Between what it reads and what it writes, others write to the session."""
    ours, theirs = open_store(), open_store()
    (version,) = commit_turns(ours, identity, 1)

    class Slow:
        def __init__(self, change: Any) -> None:
            self.change = change

        def __getattr__(self, name: str) -> Any:
            return getattr(self.change, name)

        def append(self, *arguments: Any) -> int:
            if not theirs.list("", after="text"):
                theirs.fork("text", "tool", "")
                theirs.rename("text", "text", "")
            return self.change.append(*arguments)

    change = ours._records.change
    ours._records.change = lambda work: change(lambda inner: work(Slow(inner)))  # type: ignore[method-assign]
    ours.commit("text", "", made_turn(identity, 1), version)
    assert ours.get("text", "").tokens == [0, 1]
    assert ours.get("tool", "").tokens == [0]


def test_a_server_that_is_down_is_told_and_is_used_again_when_it_is_back(
    own_server: RedisServer, open_store: Open, identity: Identity
) -> None:
    store = open_store(own_server.address, memory_bytes=0)
    (version,) = commit_turns(store, identity, 1)
    own_server.kill()
    for call in (
        lambda: store.get("text", ""),
        lambda: store.commit("text", "", made_turn(identity, 1), version),
        lambda: open_store(own_server.address),
    ):
        with pytest.raises(SessionsUnavailable, match=r"Redis cannot be reached .*try again"):
            call()
    own_server.start()
    assert store.get("text", "").version == version
    assert store.commit("text", "", made_turn(identity, 1), version) > version


def test_what_a_killed_server_had_acknowledged_is_there_when_it_is_back(
    own_server: RedisServer, open_store: Open, identity: Identity
) -> None:
    store = open_store(own_server.address, memory_bytes=0)
    versions, enough = commit_turns(store, identity, 1), threading.Event()

    def write() -> None:
        number = 0
        while True:
            number += 1
            try:
                new = store.commit("text", "", made_turn(identity, number), versions[-1])
            except SessionsUnavailable:
                return
            versions.append(new)
            if number == 20:
                enough.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert enough.wait(30)
    own_server.kill()
    writer.join()
    own_server.start()
    turns = store.turns("text", "")
    assert [turn.version for turn in turns[: len(versions)]] == versions
    assert len(turns) - len(versions) in (0, 1)  # the last may be there, and not be acknowledged
    for turn in turns[-8:]:
        stored = store.get("text", "", turn.version)
        assert equal_states(stored.state, made_state(identity, stored.meta["number"]))


def test_a_full_server_refuses_a_turn_and_loses_nothing(
    redis_server: RedisServer, open_store: Open, identity: Identity
) -> None:
    store = open_store(memory_bytes=0)
    version = commit_turns(store, identity, 3)[-1]
    for name in ("fork", "old", "older"):
        store.fork("text", name, "")
    commit_turns(store, identity, 2, "mine")
    states, names = redis_server.states(), [row.name for row in store.list("")]
    redis_server.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(SessionsUnavailable, match=r"Redis is full .*try again"):
            store.commit("text", "", made_turn(identity, 1), version)
        assert store.get("text", "").version == version
        with pytest.raises(SessionsUnavailable, match="Redis is full"):
            store.fork("text", "new", "")
        assert redis_server.states() == states
        assert [row.name for row in store.list("")] == names
        first = store.turns("mine", "")[0].version
        assert store.rollback("mine", "", first) == first  # what frees memory is taken
        assert store.get("mine", "").tokens == [0]
        store.delete("mine", "")
        (shared,) = {row.num_bytes for row in store.list("")}
        smaller = open_store(disk_bytes=shared // 3)
        assert smaller.expire() == ()
        smaller = open_store(disk_bytes=0)
        assert len(smaller.expire()) == 4
        assert redis_server.states() == set()
    finally:
        redis_server.client.config_set("maxmemory", 0)
    commit_turns(store, identity, 1)


def test_a_server_that_would_drop_sessions_is_refused(
    redis_server: RedisServer, open_store: Open
) -> None:
    redis_server.client.config_set("maxmemory", "100mb")
    redis_server.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(SessionError, match=r"policy allkeys-lru.*set it to noeviction"):
            open_store()
    finally:
        redis_server.client.config_set("maxmemory-policy", "noeviction")
        redis_server.client.config_set("maxmemory", 0)


def test_a_server_without_a_log_is_warned_of(
    open_store: Open, own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        open_store(own_server.address)
        assert not caplog.records
        open_store()
    assert "set appendonly yes" in caplog.text


def test_a_session_whose_record_was_dropped_is_refused_until_it_is_deleted(
    redis_server: RedisServer, open_store: Open, identity: Identity
) -> None:
    """A session that begins anew under its name would have forgotten everything."""
    store = open_store()
    (version,) = commit_turns(store, identity, 1)
    redis_server.client.delete(SESSION)
    for call in (
        lambda: store.get("text", ""),
        lambda: store.turns("text", ""),
        lambda: store.commit("text", "", made_turn(identity, 1), version),
        lambda: store.fork("text", "new", ""),
        lambda: store.rename("text", "new", ""),
    ):
        with pytest.raises(SessionRefused, match="its record is lost"):
            call()
    with pytest.raises(SessionExists):
        store.commit("text", "", made_turn(identity, 1), None)
    assert [(row.name, row.version) for row in store.list("")] == [("text", 0)]
    store.delete("text", "")
    commit_turns(store, identity, 1)
    redis_server.client.delete(SESSION)
    assert open_store(max_age_s=1.0).expire(float("inf")) == (("", "text"),)
    with pytest.raises(SessionMissing):
        store.get("text", "")


def test_a_lost_counter_of_versions_is_told(
    redis_server: RedisServer, open_store: Open, identity: Identity
) -> None:
    store = open_store()
    versions = commit_turns(store, identity, 2)
    redis_server.client.delete("retnet:version")
    with pytest.raises(SessionsUnavailable, match="lost the counter of versions"):
        store.commit("text", "", made_turn(identity, 2), versions[-1])


def test_bytes_are_counted(redis_server: RedisServer, open_store: Open, identity: Identity) -> None:
    store = open_store(keep_states=2)
    versions = commit_turns(store, identity, 3)
    store.fork("text", "other", "")
    store.rollback("text", "", versions[1])

    def counted() -> bool:
        states = (redis_server.client.hget(STATE + s, "data") for s in redis_server.states())
        return int(redis_server.client.get("retnet:bytes")) == sum(map(len, states))

    assert counted()
    assert len(redis_server.states()) == 2
    store.delete("other", "")
    assert counted()
    assert len(redis_server.states()) == 1
    store.delete("text", "")
    assert counted()
    kept = {b"retnet:format", b"retnet:version", b"retnet:bytes"}
    assert set(redis_server.client.keys("*")) == kept


def test_a_state_too_large_for_redis_is_refused(
    store: SessionStore, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_records, "LARGEST_STATE", 100)
    with pytest.raises(SessionError, match="Redis takes 100; keep sessions in a folder"):
        commit_turns(store, identity, 1)


def test_sessions_of_a_later_program_are_refused(
    redis_server: RedisServer, open_store: Open
) -> None:
    redis_server.client.set("retnet:format", "7")
    with pytest.raises(SessionError, match=r"have format b'7', and this program reads b'1'"):
        open_store()


def test_a_password_comes_from_the_environment_and_is_not_told(
    redis_server: RedisServer, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.client.config_set("requirepass", "open sesame")
    try:
        with pytest.raises(SessionsUnavailable, match="authenticated"):
            open_store()
        monkeypatch.setenv("RETNET_REDIS_PASSWORD", "open sesame")
        assert open_store().list("") == ()
        monkeypatch.setenv("RETNET_REDIS_PASSWORD", "open barley")
        with pytest.raises(SessionsUnavailable) as told:
            open_store()
        assert "barley" not in str(told.value)
    finally:
        redis_server.client.config_set("requirepass", "")


def test_without_the_package_it_is_named(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "retnet.serve.sessions.redis_records", None)
    with pytest.raises(ValueError, match=r"pip install 'retnet\[redis\]'"):
        open_store()


def test_an_address_that_is_none_is_refused(open_store: Open) -> None:
    with pytest.raises(ValueError, match=r"[Pp]ort"):
        open_store("redis://127.0.0.1:x/0")
