import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from retnet.model import DecoderState, select_rows
from retnet.model.decoding import prefill
from retnet.model.state import state_tensors
from retnet.serve.sessions import (
    Identity,
    Limits,
    SessionError,
    SessionExists,
    SessionMissing,
    SessionRefused,
    SessionStore,
    Turn,
    VersionConflict,
    identify,
)
from retnet.serve.sessions.records import Key
from session_support import (
    Place,
    commit_turns,
    equal_states,
    made_state,
    made_turn,
    small_model,
)

Open = Callable[..., SessionStore]


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
    store: SessionStore, identity: Identity, place: Place
) -> None:
    versions = commit_turns(store, identity, 2)
    assert store.fork("text", "other", "") == versions[1]
    assert store.fork("text", "earlier", "", versions[0]) == versions[0]
    assert len(place.states()) == 2
    store.commit("other", "", made_turn(identity, 9), versions[1])
    assert store.get("text", "").tokens == [0, 1]
    assert store.get("other", "").tokens == [0, 1, 9]
    assert store.get("earlier", "").tokens == [0]
    store.delete("text", "")
    assert len(place.states()) == 3
    assert equal_states(store.get("earlier", "").state, made_state(identity, 0))
    store.delete("earlier", "")
    store.delete("other", "")
    assert place.states() == set()


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
    open_store: Open, identity: Identity, place: Place
) -> None:
    store = open_store(keep_states=2)
    versions = commit_turns(store, identity, 4)
    turns = store.turns("text", "")
    assert [turn.version for turn in turns] == versions
    assert [turn.num_tokens for turn in turns] == [1, 2, 3, 4]
    assert [turn.meta["number"] for turn in turns] == [0, 1, 2, 3]
    assert [turn.kept for turn in turns] == [False, False, True, True]
    assert len(place.states()) == 2
    assert store.get("text", "").tokens == [0, 1, 2, 3]
    with pytest.raises(SessionMissing, match=r"no state of version 1; it keeps those of \[3, 4\]"):
        store.rollback("text", "", versions[0])


def test_after_a_rollback_the_session_is_as_it_was(
    store: SessionStore, identity: Identity, place: Place
) -> None:
    versions = commit_turns(store, identity, 3)
    assert store.rollback("text", "", versions[1]) == versions[1]
    assert store.get("text", "").tokens == [0, 1]
    assert len(place.states()) == 2
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
    open_store: Open, identity: Identity, place: Place
) -> None:
    store = open_store(max_age_s=100.0)
    commit_turns(store, identity, 2, "old")
    commit_turns(store, identity, 1, "new")
    changed = {row.name: row.changed for row in store.list("")}
    assert store.expire(changed["old"] + 100) == ()
    moment = (changed["old"] + changed["new"]) / 2
    assert store.expire(moment + 100) == (("", "old"),)
    assert [row.name for row in store.list("")] == ["new"]
    assert len(place.states()) == 1


def test_too_many_bytes_cost_ways_back_first_and_then_the_oldest_sessions(
    open_store: Open, identity: Identity, place: Place
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
    assert len(place.states()) == 2


def test_a_session_needs_its_newest_state(open_store: Open) -> None:
    with pytest.raises(ValueError, match=r"keep_states \(0\) must be at least 1"):
        open_store(keep_states=0)


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        ({"max_age_s": 0.0}, r"max_age_s \(0.0\) must be positive; leave it out"),
        ({"max_age_s": float("nan")}, "must be positive"),
        ({"disk_bytes": -1}, r"disk_bytes \(-1\) must be 0 or more"),
        ({"memory_bytes": -1}, r"memory_bytes \(-1\) must be 0 or more"),
    ],
)
def test_limits_that_cannot_be_are_refused(limit: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Limits(**limit)  # type: ignore[arg-type]


def test_a_writer_that_loses_while_it_writes_leaves_no_state(
    open_store: Open, identity: Identity, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = open_store(), open_store()
    (version,) = commit_turns(ours, identity, 1)
    stage = ours._records.stage

    @contextmanager
    def late(*arguments: Any) -> Iterator[Any]:
        with stage(*arguments) as staged:
            theirs.commit("text", "", made_turn(identity, 7), version)
            yield staged

    monkeypatch.setattr(ours._records, "stage", late)
    with pytest.raises(VersionConflict):
        ours.commit("text", "", made_turn(identity, 1), version)
    assert len(place.states()) == 2
    assert ours.get("text", "").meta == {"number": 7}


def test_a_turn_dropped_while_it_is_read_is_read_again(
    open_store: Open, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state was found, and another process deleted it before it was read."""
    ours, theirs = open_store(memory_bytes=0, keep_states=1), open_store(keep_states=1)
    (version,) = commit_turns(theirs, identity, 1)
    load = ours._records.load

    def slow(state: str) -> Any:
        if theirs.get("text", "").version == version:
            theirs.commit("text", "", made_turn(identity, 1), version)
        return load(state)

    monkeypatch.setattr(ours._records, "load", slow)
    assert ours.get("text", "").meta == {"number": 1}


def test_a_replica_never_serves_from_memory_what_another_has_changed(
    open_store: Open, identity: Identity
) -> None:
    """Memory is asked by a state's own name, which the session is asked for each time."""
    ours, theirs = open_store(), open_store()
    versions = commit_turns(ours, identity, 2)

    def number() -> int:
        stored = ours.get("text", "")
        assert equal_states(stored.state, made_state(identity, stored.meta["number"]))
        return stored.meta["number"]

    assert number() == 1
    theirs.commit("text", "", made_turn(identity, 2), versions[1])
    assert number() == 2
    theirs.rollback("text", "", versions[0])
    assert number() == 0
    theirs.fork("text", "other", "")
    theirs.delete("text", "")
    with pytest.raises(SessionMissing):
        number()
    theirs.commit("text", "", made_turn(identity, 5), None)
    assert number() == 5
    theirs.rename("text", "older", "")
    theirs.rename("other", "text", "")
    assert number() == 0
    assert ours.memory.hits > 0


def test_a_lost_state_is_reported_and_an_earlier_turn_is_still_there(
    open_store: Open, identity: Identity, place: Place
) -> None:
    versions = commit_turns(open_store(), identity, 2)
    before = place.states()
    reader = open_store(memory_bytes=0)
    version = reader.commit("text", "", made_turn(identity, 2), versions[-1])
    (state,) = place.states() - before
    place.lose(state)
    with pytest.raises(SessionRefused, match="is gone; go back to an earlier turn"):
        reader.get("text", "")
    assert reader.fork("text", "copy", "", versions[1]) == versions[1]
    assert reader.rollback("text", "", versions[1]) < version
    for name in ("text", "copy"):
        assert reader.get(name, "").tokens == [0, 1]


def test_an_altered_state_is_refused_and_an_earlier_turn_is_still_there(
    open_store: Open, identity: Identity, place: Place
) -> None:
    first, _ = commit_turns(open_store(), identity, 2)
    (state,) = {s for s in place.states() if s != open_state(open_store(), first)}
    data = bytearray(place.data(state))
    data[-1] ^= 1
    place.put(state, bytes(data))
    reader = open_store()
    with pytest.raises(SessionRefused, match=r'session "text": .* checksum .*earlier turn'):
        reader.get("text", "")
    place.put(state, bytes(data[:-9]))
    with pytest.raises(SessionRefused, match=r"safetensors|damaged"):
        reader.get("text", "")
    reader.rollback("text", "", first)
    assert reader.get("text", "").meta == {"number": 0}


def open_state(store: SessionStore, version: int) -> str:
    """The name of the state of a version of a text."""
    head = store._records.head(Key("", "text"))
    assert head is not None
    return head.states[version].state


ODD_NAMES = [
    "\u00e9",
    "e\u0301",
    "日本語",
    "🦆" * 200,
    "a b",
    "%2F",
    "a:b",
    "'; --",
    "-",
    "(",
    "[x",
    "*",
]


def test_odd_names_are_names_like_others(store: SessionStore, identity: Identity) -> None:
    for number, name in enumerate(ODD_NAMES):
        store.commit(name, "o:w", made_turn(identity, number), None)
        store.commit(f"w:{name}"[:200], "o", made_turn(identity, 100 + number), None)
    for number, name in enumerate(ODD_NAMES):
        assert store.get(name, "o:w").meta == {"number": number}
    listed: list[str] = []
    while page := store.list("o:w", limit=5, after=listed[-1] if listed else ""):
        listed += [row.name for row in page]
    assert listed == sorted(ODD_NAMES)
    for name in ("\udcff", "", "\x00", "b" * 10**6):
        with pytest.raises(SessionMissing, match="there is no session"):
            store.get(name, "o:w")
    assert store.list("o:w", after="\udcff") == store.list("o:w", after="?")


def test_owners_do_not_get_in_each_others_way(store: SessionStore, identity: Identity) -> None:
    for owner in range(12):
        store.commit("text", str(owner), made_turn(identity, owner), None)
    assert [store.list(str(owner))[0].meta["number"] for owner in range(12)] == list(range(12))


def test_meta_may_be_large_but_not_endless(store: SessionStore, identity: Identity) -> None:
    state, deep = made_state(identity, 0), {}
    for _ in range(10**5):
        deep = {"x": deep}
    for meta in ({"x": "y" * 2**24}, deep):
        with pytest.raises(ValueError, match="meta"):
            store.commit("text", "", Turn(state=state, tokens=[1], meta=meta), None)
    meta = {"x": "ä\udcff" * 10**5, "y": [{}] * 10**4}
    store.commit("text", "", Turn(state=state, tokens=[1], meta=meta), None)
    assert store.get("text", "").meta == store.turns("text", "")[0].meta == meta
    store.import_(store.export("text", ""), "copy", "")
    assert store.list("")[0].meta == meta


def test_a_clock_that_goes_backwards_makes_no_session_older(
    store: SessionStore, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = commit_turns(store, identity, 2)
    (before,) = store.list("")
    monkeypatch.setattr(time, "time", lambda: before.changed - 10**6)
    store.commit("text", "", made_turn(identity, 2), versions[-1])
    store.rename("text", "novel", "")
    store.rollback("novel", "", versions[0])
    assert store.list("")[0].changed == before.changed
    created = [turn.created for turn in store.turns("novel", "")]
    assert created == sorted(created)
