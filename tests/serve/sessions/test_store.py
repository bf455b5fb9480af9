import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retnet.model import DecoderState, select_rows
from retnet.model.decoding import prefill
from retnet.model.state import state_tensors
from retnet.serve.sessions import (
    Identity,
    SessionError,
    SessionExists,
    SessionMissing,
    SessionRefused,
    SessionStore,
    Turn,
    VersionConflict,
    identify,
)
from session_support import equal_states, made_state, made_turn, small_model

Open = Callable[..., SessionStore]


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "data/states").iterdir()}


def commit_turns(
    store: SessionStore, identity: Identity, num: int, name: str = "text"
) -> list[int]:
    versions: list[int] = []
    for number in range(num):
        before = versions[-1] if versions else None
        versions.append(store.commit(name, "", made_turn(identity, number), before))
    return versions


def test_a_committed_turn_is_there_in_another_process(open_store: Open, identity: Identity) -> None:
    logits = torch.randn(16)
    state = made_state(identity, 3)
    turn = Turn(state=state, tokens=[5, 0, 15], meta={"a": [1, "ä"]}, logits=logits)
    version = open_store().commit("my text", "me", turn, None)
    stored = open_store().get("my text", "me")
    assert equal_states(stored.state, state)
    assert stored.logits is not None
    assert stored.logits.equal(logits)
    assert (stored.version, stored.tokens, stored.num_tokens) == (version, [5, 0, 15], 3)
    assert stored.meta == {"a": [1, "ä"]}


def test_what_is_stored_is_a_copy(store: SessionStore, identity: Identity) -> None:
    state = made_state(identity, 0)
    store.commit("text", "", Turn(state=state, tokens=[1], meta={}), None)
    for tensor in state_tensors(state).values():
        tensor.zero_()
    assert equal_states(store.get("text", "").state, made_state(identity, 0))


def test_going_on_from_a_stored_state_is_as_if_one_had_never_stopped(open_store: Open) -> None:
    model = small_model()
    text = torch.randint(16, (1, 40))
    _, state = prefill(model, text[:, :25])
    store = open_store(identify(model))
    store.commit("text", "", Turn(state=state, tokens=text[0, :25].tolist(), meta={}), None)
    restored = open_store(identify(model)).get("text", "").state
    want, whole = prefill(model, text[:, 25:], state)
    got, resumed = prefill(model, text[:, 25:], restored)
    assert got.equal(want)
    assert equal_states(resumed, whole)


def test_turns_add_tokens_and_replace_state_and_meta(
    store: SessionStore, identity: Identity
) -> None:
    versions = commit_turns(store, identity, 3)
    stored = store.get("text", "")
    assert stored.tokens == [0, 1, 2]
    assert stored.meta == {"number": 2}
    assert equal_states(stored.state, made_state(identity, 2))
    assert versions == sorted(set(versions))
    assert stored.version == versions[-1]


def test_an_earlier_turn_can_be_read(store: SessionStore, identity: Identity) -> None:
    versions = commit_turns(store, identity, 3)
    stored = store.get("text", "", versions[1])
    assert (stored.tokens, stored.meta) == ([0, 1], {"number": 1})
    assert equal_states(stored.state, made_state(identity, 1))


def test_the_second_of_two_writers_is_told(open_store: Open, identity: Identity) -> None:
    ours, theirs = open_store(), open_store()
    (version,) = commit_turns(ours, identity, 1)
    theirs.commit("text", "", made_turn(identity, 7), version)
    with pytest.raises(VersionConflict, match="another writer was first; read it again, or fork"):
        ours.commit("text", "", made_turn(identity, 1), version)
    assert ours.get("text", "").meta == {"number": 7}


def test_a_writer_that_loses_while_it_writes_leaves_no_file(
    open_store: Open, identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = open_store(), open_store()
    (version,) = commit_turns(ours, identity, 1)
    write = SessionStore._write

    def late(self: SessionStore, *arguments: object) -> object:
        if self is ours:
            theirs.commit("text", "", made_turn(identity, 7), version)
        return write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SessionStore, "_write", late)
    with pytest.raises(VersionConflict):
        ours.commit("text", "", made_turn(identity, 1), version)
    assert len(files(tmp_path)) == 2
    assert ours.get("text", "").meta == {"number": 7}


def test_a_new_session_needs_a_new_name(store: SessionStore, identity: Identity) -> None:
    commit_turns(store, identity, 1)
    for make in (
        lambda: store.commit("text", "", made_turn(identity, 0), None),
        lambda: store.fork("text", "text", ""),
        lambda: store.import_(store.export("text", ""), "text", ""),
    ):
        with pytest.raises(SessionExists, match='there is a session "text" already'):
            make()
    commit_turns(store, identity, 1, "other")
    with pytest.raises(SessionExists, match="already; choose another name"):
        store.rename("text", "other", "")


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\nb", "\udcff", 201 * "a"])
def test_names_that_cannot_stand_in_an_address_are_refused(
    store: SessionStore, identity: Identity, name: str
) -> None:
    with pytest.raises(SessionError, match="choose another"):
        store.commit(name, "", made_turn(identity, 0), None)


def test_a_version_is_never_given_twice(store: SessionStore, identity: Identity) -> None:
    """A writer that knew a deleted session cannot write to one made after it under its name."""
    (old,) = commit_turns(store, identity, 1)
    store.delete("text", "")
    (new,) = commit_turns(store, identity, 1)
    assert new > old
    with pytest.raises(VersionConflict):
        store.commit("text", "", made_turn(identity, 1), old)


def test_a_fork_goes_its_own_way_and_shares_the_files_before(
    store: SessionStore, identity: Identity, tmp_path: Path
) -> None:
    versions = commit_turns(store, identity, 2)
    assert store.fork("text", "other", "") == versions[1]
    assert store.fork("text", "earlier", "", versions[0]) == versions[0]
    assert len(files(tmp_path)) == 2
    store.commit("other", "", made_turn(identity, 9), versions[1])
    assert store.get("text", "").tokens == [0, 1]
    assert store.get("other", "").tokens == [0, 1, 9]
    assert store.get("earlier", "").tokens == [0]
    store.delete("text", "")
    assert len(files(tmp_path)) == 3
    assert equal_states(store.get("earlier", "").state, made_state(identity, 0))
    store.delete("earlier", "")
    store.delete("other", "")
    assert files(tmp_path) == set()


def test_a_renamed_session_is_under_its_new_name_only(
    store: SessionStore, identity: Identity
) -> None:
    commit_turns(store, identity, 2)
    store.rename("text", "novel", "")
    store.rename("novel", "novel", "")
    assert store.get("novel", "").tokens == [0, 1]
    with pytest.raises(SessionMissing, match='there is no session "text"'):
        store.get("text", "")


def test_every_operation_on_a_missing_session_says_so(
    store: SessionStore, identity: Identity
) -> None:
    for call in (
        lambda: store.get("text", ""),
        lambda: store.commit("text", "", made_turn(identity, 0), 1),
        lambda: store.fork("text", "new", ""),
        lambda: store.rename("text", "new", ""),
        lambda: store.delete("text", ""),
        lambda: store.turns("text", ""),
        lambda: store.rollback("text", "", 1),
        lambda: store.export("text", ""),
    ):
        with pytest.raises(SessionMissing, match='there is no session "text"'):
            call()


def test_owners_see_their_own_sessions_only(store: SessionStore, identity: Identity) -> None:
    store.commit("text", "ann", made_turn(identity, 1), None)
    store.commit("text", "bob", made_turn(identity, 2), None)
    store.commit("bob's", "bob", made_turn(identity, 3), None)
    assert store.get("text", "ann").meta == {"number": 1}
    assert [row.name for row in store.list("ann")] == ["text"]
    with pytest.raises(SessionMissing):
        store.get("bob's", "ann")
    store.delete("text", "ann")
    assert store.get("text", "bob").meta == {"number": 2}


def test_lists_come_in_pages_by_name(store: SessionStore, identity: Identity) -> None:
    for name in ("c", "a", "b"):
        commit_turns(store, identity, 2, name)
    store.fork("a", "d", "")
    first = store.list("", limit=3)
    rest = store.list("", limit=3, after=first[-1].name)
    assert [row.name for row in first + rest] == ["a", "b", "c", "d"]
    row, fork = first[0], rest[0]
    assert (row.num_tokens, row.meta, row.parent) == (2, {"number": 1}, "")
    assert fork.parent == f"a@{row.version}"
    assert row.fingerprint == identity.fingerprint
    assert row.num_bytes == fork.num_bytes > 0
    assert row.created <= row.changed


def test_the_newest_states_are_kept_and_the_tokens_of_all(
    open_store: Open, identity: Identity, tmp_path: Path
) -> None:
    store = open_store(keep_states=2)
    versions = commit_turns(store, identity, 4)
    turns = store.turns("text", "")
    assert [turn.version for turn in turns] == versions
    assert [turn.num_tokens for turn in turns] == [1, 2, 3, 4]
    assert [turn.meta["number"] for turn in turns] == [0, 1, 2, 3]
    assert [turn.kept for turn in turns] == [False, False, True, True]
    assert len(files(tmp_path)) == 2
    assert store.get("text", "").tokens == [0, 1, 2, 3]
    with pytest.raises(SessionMissing, match=r"no state of version 1; it keeps those of \[3, 4\]"):
        store.rollback("text", "", versions[0])


def test_after_a_rollback_the_session_is_as_it_was(
    store: SessionStore, identity: Identity, tmp_path: Path
) -> None:
    versions = commit_turns(store, identity, 3)
    assert store.rollback("text", "", versions[1]) == versions[1]
    assert store.get("text", "").tokens == [0, 1]
    assert len(files(tmp_path)) == 2
    with pytest.raises(VersionConflict):  # it knew what was rolled back
        store.commit("text", "", made_turn(identity, 9), versions[2])
    new = store.commit("text", "", made_turn(identity, 9), versions[1])
    assert new > versions[2]
    assert store.get("text", "").tokens == [0, 1, 9]


def test_an_exported_session_can_be_imported_elsewhere(
    store: SessionStore, identity: Identity, tmp_path: Path
) -> None:
    versions = commit_turns(store, identity, 3)
    elsewhere = SessionStore(tmp_path / "elsewhere", identity)
    elsewhere.import_(store.export("text", ""), "new", "me")
    elsewhere.import_(store.export("text", "", versions[0]), "old", "me")
    stored = elsewhere.get("new", "me")
    assert (stored.tokens, stored.meta) == ([0, 1, 2], {"number": 2})
    assert equal_states(stored.state, made_state(identity, 2))
    assert elsewhere.get("old", "me").tokens == [0]
    elsewhere.close()


def test_logits_travel_with_an_export(store: SessionStore, identity: Identity) -> None:
    logits = torch.randn(16)
    turn = Turn(state=made_state(identity, 0), tokens=[1], meta={}, logits=logits)
    store.commit("text", "", turn, None)
    store.import_(store.export("text", ""), "copy", "")
    copy = store.get("copy", "").logits
    assert copy is not None
    assert copy.equal(logits)


def test_another_model_is_refused_and_what_differs_is_said(
    open_store: Open, identity: Identity
) -> None:
    store = open_store()
    commit_turns(store, identity, 1)
    for model, differs in ((small_model(1), "weights"), (small_model(d_model=16), "config")):
        other = open_store(identify(model))
        for call in (
            lambda other=other: other.get("text", ""),
            lambda other=other: other.fork("text", "new", ""),
            lambda other=other: other.import_(store.export("text", ""), "new", ""),
        ):
            with pytest.raises(SessionRefused, match=f"belongs to a model of other {differs}"):
                call()
        assert other.list("")[0].name == "text"


def test_a_state_of_another_shape_is_not_stored(store: SessionStore) -> None:
    wide = made_state(identify(small_model(d_model=16)), 0)
    with pytest.raises(SessionRefused, match=r"the state to store has layers\.0\.0\.S"):
        store.commit("text", "", Turn(state=wide, tokens=[1], meta={}), None)


def test_a_state_of_two_rows_is_not_stored(store: SessionStore, identity: Identity) -> None:
    two = select_rows(made_state(identity, 0), [0, 0])
    with pytest.raises(ValueError, match="2 rows and a session has one; select_rows picks it"):
        store.commit("text", "", Turn(state=two, tokens=[1], meta={}), None)


@pytest.mark.parametrize(
    ("tokens", "meta", "why"),
    [([-1], {}, "tokens go from -1"), ([1], {"x": float("nan")}, "meta is not JSON")],
)
def test_what_cannot_be_read_back_is_not_stored(
    store: SessionStore, identity: Identity, tokens: list[int], meta: dict[str, float], why: str
) -> None:
    turn = Turn(state=made_state(identity, 0), tokens=tokens, meta=meta)
    with pytest.raises(ValueError, match=why):
        store.commit("text", "", turn, None)
    assert store.list("") == ()


def test_a_state_that_grows_is_stored_at_any_length(open_store: Open) -> None:
    layer = {"mixer": {"name": "attention", "num_heads": 2}, "channel": {"name": "glu", "width": 8}}
    model = small_model(layers=[layer])
    identity = identify(model)
    store = open_store(identity)
    states: list[DecoderState] = []
    for length in (1, 7):
        tokens = torch.randint(16, (1, length))
        states.append(prefill(model, tokens)[1])
        turn = Turn(state=states[-1], tokens=tokens[0].tolist(), meta={})
        store.commit(f"of {length}", "", turn, None)
    reader = open_store(identity)
    assert equal_states(reader.get("of 1", "").state, states[0])
    assert equal_states(reader.get("of 7", "").state, states[1])


def test_states_used_last_are_in_memory(open_store: Open, identity: Identity) -> None:
    size = sum(tensor.nbytes for tensor in state_tensors(identity.template).values())
    store = open_store(memory_bytes=2 * size)
    for name in ("a", "b", "c"):
        commit_turns(store, identity, 1, name)
    assert store.memory.num_bytes == 2 * size
    store.get("b", "")
    store.get("a", "")  # c leaves
    store.get("b", "")
    assert (store.memory.hits, store.memory.misses) == (2, 1)
    store.delete("b", "")
    assert store.memory.num_bytes == size
    nothing = open_store(memory_bytes=0)
    assert nothing.get("a", "").tokens == nothing.get("a", "").tokens
    assert nothing.memory.num_bytes == 0


def test_sessions_unchanged_for_too_long_expire(
    open_store: Open, identity: Identity, tmp_path: Path
) -> None:
    store = open_store(max_age_s=100.0)
    commit_turns(store, identity, 2, "old")
    commit_turns(store, identity, 1, "new")
    changed = {row.name: row.changed for row in store.list("")}
    assert store.expire(changed["old"] + 100) == ()
    moment = (changed["old"] + changed["new"]) / 2
    assert store.expire(moment + 100) == (("", "old"),)
    assert [row.name for row in store.list("")] == ["new"]
    assert len(files(tmp_path)) == 1


def test_too_many_bytes_cost_ways_back_first_and_then_the_oldest_sessions(
    open_store: Open, identity: Identity, tmp_path: Path
) -> None:
    store = open_store()
    for name in ("first", "second", "third"):
        commit_turns(store, identity, 2, name)
    one = store.list("")[0].num_bytes // 2
    assert store.expire() == ()
    assert open_store(disk_bytes=5 * one).expire() == ()
    assert [turn.kept for turn in store.turns("first", "")] == [False, True]
    assert [turn.kept for turn in store.turns("second", "")] == [True, True]
    assert open_store(disk_bytes=2 * one).expire() == (("", "first"),)
    assert [row.name for row in store.list("")] == ["second", "third"]
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("name", ["f.safetensors", ".f.safetensors.tmp"])
def test_old_orphans_are_swept_and_young_ones_are_not(
    open_store: Open, identity: Identity, tmp_path: Path, name: str
) -> None:
    commit_turns(open_store(), identity, 1)
    (kept,) = (tmp_path / "data/states").iterdir()
    os.utime(kept, (0, 0))
    orphan = tmp_path / "data/states" / name
    orphan.touch()
    store = open_store()
    assert orphan.exists()
    os.utime(orphan, (0, 0))
    assert store.sweep() == 1
    assert files(tmp_path) == {kept.name}
    assert store.sweep() == 0


def test_a_turn_dropped_while_it_is_read_is_read_again(
    open_store: Open, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index named a file that another process deleted before it was opened."""
    ours, theirs = open_store(memory_bytes=0, keep_states=1), open_store(keep_states=1)
    (version,) = commit_turns(theirs, identity, 1)
    read = SessionStore._snapshot

    def slow(self: SessionStore, *arguments: str) -> object:
        if theirs.get("text", "").version == version:
            theirs.commit("text", "", made_turn(identity, 1), version)
        return read(self, *arguments)

    monkeypatch.setattr(ours, "_snapshot", slow.__get__(ours))
    assert ours.get("text", "").meta == {"number": 1}


def test_a_lost_file_is_reported(store: SessionStore, open_store: Open, identity: Identity) -> None:
    commit_turns(store, identity, 1)
    for path in store._states.iterdir():
        path.unlink()
    with pytest.raises(SessionRefused, match="is gone; go back to an earlier turn"):
        open_store().get("text", "")


def test_a_folder_that_is_no_store_is_refused(open_store: Open, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/index.sqlite").write_bytes(100 * b"no data base ")
    with pytest.raises(SessionError, match="cannot be opened"):
        open_store()


def test_the_index_of_a_later_program_is_refused(open_store: Open, tmp_path: Path) -> None:
    open_store().close()
    db = sqlite3.connect(tmp_path / "data/index.sqlite")
    db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(SessionError, match="has format 7, and this program reads 1"):
        open_store()


def test_a_session_needs_its_newest_state(open_store: Open) -> None:
    with pytest.raises(ValueError, match=r"keep_states \(0\) must be at least 1"):
        open_store(keep_states=0)
