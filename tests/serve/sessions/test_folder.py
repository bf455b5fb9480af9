"""What only a folder can suffer."""

import errno
import os
import resource
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retnet.serve.sessions import (
    Identity,
    SessionError,
    SessionStore,
    SessionsUnavailable,
)
from session_support import commit_turns, equal_states, made_state, made_turn

Open = Callable[..., SessionStore]


@pytest.mark.parametrize("name", ["f.safetensors", ".f.safetensors.tmp"])
def test_old_orphans_are_swept_and_young_ones_are_not(
    open_folder: Open, identity: Identity, tmp_path: Path, name: str
) -> None:
    commit_turns(open_folder(), identity, 1)
    (kept,) = (tmp_path / "data/states").iterdir()
    os.utime(kept, (0, 0))
    orphan = tmp_path / "data/states" / name
    orphan.touch()
    store = open_folder()
    assert orphan.exists()
    os.utime(orphan, (0, 0))
    assert store.sweep() == 1
    assert {path.name for path in orphan.parent.iterdir()} == {kept.name}
    assert store.sweep() == 0


def test_a_folder_that_is_no_store_is_refused(open_folder: Open, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/index.sqlite").write_bytes(100 * b"no data base ")
    with pytest.raises(SessionError, match="cannot be opened"):
        open_folder()


def test_the_index_of_a_later_program_is_refused(open_folder: Open, tmp_path: Path) -> None:
    open_folder().close()
    db = sqlite3.connect(tmp_path / "data/index.sqlite")
    db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(SessionError, match="has format 7, and this program reads 1"):
        open_folder()


def test_nobody_else_may_read_what_was_said(
    open_folder: Open, identity: Identity, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        commit_turns(open_folder(), identity, 2)
    finally:
        os.umask(before)
    for path in [tmp_path / "data", *(tmp_path / "data").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_state_swept_away_before_it_is_named_is_not_named(
    open_folder: Open, identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process's clock is hours ahead, or the writer has slept for hours."""
    ours, theirs = open_folder(), open_folder()
    (version,) = commit_turns(ours, identity, 1)
    change = ours._records.change

    def late(work: Callable[..., object]) -> object:
        for path in (tmp_path / "data/states").iterdir():
            os.utime(path, (0, 0))
        assert theirs.sweep() == 1
        return change(work)

    with monkeypatch.context() as patch:
        patch.setattr(ours._records, "change", late)
        with pytest.raises(SessionsUnavailable, match="swept away before it was named"):
            ours.commit("text", "", made_turn(identity, 1), version)
    assert theirs.get("text", "").version == version
    assert ours.commit("text", "", made_turn(identity, 1), version) > version


@contextmanager
def files_at_most(num_bytes: int) -> Iterator[None]:
    """The system ends writes that would make a file larger, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_at_any_byte_of_a_commit_loses_nothing(
    open_folder: Open, identity: Identity, tmp_path: Path
) -> None:
    store = open_folder(memory_bytes=0)
    (version,) = commit_turns(store, identity, 1)
    states = tmp_path / "data/states"
    size = max(path.stat().st_size for path in (tmp_path / "data").rglob("*") if path.is_file())
    told: list[str] = []
    for limit in range(0, 2 * size, size // 20):
        with files_at_most(limit):
            try:
                new = store.commit("text", "", made_turn(identity, 9), version)
            except SessionsUnavailable as error:
                told.append(str(error))
                new = None
        if new is not None:
            break
        assert len(list(states.iterdir())) == 1, limit
        stored = store.get("text", "")
        assert stored.version == version
        assert equal_states(stored.state, made_state(identity, 0))
    assert len(told) > 5
    assert all("see whether the disk is full" in text for text in told)
    assert open_folder().get("text", "").tokens == [0, 9]


def test_a_disk_that_fails_to_flush_is_told(
    open_folder: Open, identity: Identity, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = open_folder()
    (version,) = commit_turns(store, identity, 1)

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(SessionsUnavailable, match="No space left on device"):
            store.commit("text", "", made_turn(identity, 1), version)
    assert len(list((tmp_path / "data/states").iterdir())) == 1
    store.commit("text", "", made_turn(identity, 1), version)


def test_a_state_is_on_the_disk_before_its_name_is(
    open_folder: Open, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_folder()
    done: list[str] = []

    def noted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def work(*arguments: object) -> object:
            done.append(name)
            return call(*arguments)

        return work

    monkeypatch.setattr(os, "fsync", noted("flush", os.fsync))
    monkeypatch.setattr(Path, "replace", noted("rename", Path.replace))
    monkeypatch.setattr(store._records, "change", noted("name", store._records.change))
    store.commit("text", "", made_turn(identity, 0), None)
    assert done == ["flush", "rename", "flush", "name"]


def test_a_locked_index_is_told(
    open_folder: Open, identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retnet.serve.sessions.index.PATIENCE_S", 0.0)
    store = open_folder()
    other = sqlite3.connect(tmp_path / "data/index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SessionsUnavailable, match="locked"):
        store.commit("text", "", made_turn(identity, 0), None)
    other.close()
    store.commit("text", "", made_turn(identity, 0), None)


def test_a_damaged_index_is_told(open_folder: Open, identity: Identity, tmp_path: Path) -> None:
    store = open_folder()
    commit_turns(store, identity, 3)
    store.close()
    path = tmp_path / "data/index.sqlite"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))  # the first page is whole
    damaged = open_folder()
    for call in (
        lambda: damaged.get("text", ""),
        lambda: damaged.list(""),
        lambda: damaged.commit("text", "", made_turn(identity, 0), None),
    ):
        with pytest.raises(SessionsUnavailable, match="malformed"):
            call()
