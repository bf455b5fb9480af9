"""Operations in any order, beside a plain dictionary that says what must be there."""

import shutil
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from redis_server import RedisServer
from retnet.serve.sessions import (
    Limits,
    SessionExists,
    SessionMissing,
    SessionStore,
    Turn,
    VersionConflict,
    identify,
)
from session_support import Place, equal_states, made_state, small_model

IDENTITY = identify(small_model())
KEPT = 3
AGE_S = 1000.0

owners = st.sampled_from(["ann", "bob"])
names = st.sampled_from(["a", "b", "c"])


@dataclass
class Text:
    """A session: its turns' versions and numbers, and which states are kept."""

    versions: list[int]
    numbers: list[int]
    kept: set[int] = field(default_factory=set)


def tokens_of(numbers: list[int]) -> list[int]:
    """Of turns; no state is after more tokens than there are."""
    return [number % 16 for number in numbers for _ in range(number + 1)]


class Sessions(RuleBasedStateMachine):
    """Two processes take turns at one place; the second keeps nothing in memory."""

    place: ClassVar[Place]

    def __init__(self) -> None:
        super().__init__()
        self.stores = [
            SessionStore(
                self.place.address,
                IDENTITY,
                Limits(keep_states=KEPT, max_age_s=AGE_S, memory_bytes=memory_bytes),
            )
            for memory_bytes in (10**6, 0)
        ]
        self.known: dict[tuple[str, str], Text] = {}
        self.order: list[tuple[str, str]] = []  # the last changed last
        self.number = 0
        self.newest = 0

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        self.clear()

    def clear(self) -> None:
        """Forget everything, for the next example."""
        raise NotImplementedError

    def store(self) -> SessionStore:
        self.stores.reverse()
        return self.stores[0]

    def changed(self, key: tuple[str, str]) -> None:
        if key in self.order:
            self.order.remove(key)
        self.order.append(key)

    @rule(owner=owners, name=names, late=st.booleans())
    def commit(self, owner: str, name: str, late: bool) -> None:
        text = self.known.get((owner, name))
        self.number += 1
        state = made_state(IDENTITY, self.number)
        turn = Turn(state=state, tokens=tokens_of([self.number]), meta={})
        if late and text is not None:
            for wrong in (None, text.versions[-1] - 1, text.versions[-1] + 1):
                with pytest.raises(VersionConflict):
                    self.store().commit(name, owner, turn, wrong)
            return
        version = self.store().commit(name, owner, turn, text and text.versions[-1])
        assert version > self.newest
        self.newest = version
        text = self.known.setdefault((owner, name), Text([], []))
        text.versions.append(version)
        text.numbers.append(self.number)
        text.kept = set(sorted({*text.kept, version})[-KEPT:])
        self.changed((owner, name))

    @rule(owner=owners, name=names, new=names, data=st.data())
    def fork(self, owner: str, name: str, new: str, data: st.DataObject) -> None:
        text = self.known.get((owner, name))
        if text is None or (owner, new) in self.known:
            with pytest.raises((SessionMissing, SessionExists)):
                self.store().fork(name, new, owner)
            return
        version = data.draw(st.sampled_from(sorted(text.kept)))
        assert self.store().fork(name, new, owner, version) == version
        end = text.versions.index(version) + 1
        kept = {version for version in text.kept if version in text.versions[:end]}
        self.known[owner, new] = Text(text.versions[:end], text.numbers[:end], kept)
        self.changed((owner, new))

    @rule(owner=owners, name=names, data=st.data())
    def rollback(self, owner: str, name: str, data: st.DataObject) -> None:
        text = self.known.get((owner, name))
        if text is None:
            with pytest.raises(SessionMissing):
                self.store().rollback(name, owner, self.newest)
            return
        version = data.draw(st.sampled_from(text.versions))
        if version not in text.kept:
            with pytest.raises(SessionMissing):
                self.store().rollback(name, owner, version)
            return
        self.store().rollback(name, owner, version)
        end = text.versions.index(version) + 1
        text.versions, text.numbers = text.versions[:end], text.numbers[:end]
        text.kept &= set(text.versions)
        self.changed((owner, name))

    @rule(owner=owners, name=names, new=names)
    def rename(self, owner: str, name: str, new: str) -> None:
        if (owner, name) not in self.known or (name != new and (owner, new) in self.known):
            with pytest.raises((SessionMissing, SessionExists)):
                self.store().rename(name, new, owner)
            return
        self.store().rename(name, new, owner)
        self.known[owner, new] = self.known.pop((owner, name))
        self.order.remove((owner, name))
        self.changed((owner, new))

    @rule(owner=owners, name=names)
    def delete(self, owner: str, name: str) -> None:
        if (owner, name) not in self.known:
            with pytest.raises(SessionMissing):
                self.store().delete(name, owner)
            return
        self.store().delete(name, owner)
        del self.known[owner, name]
        self.order.remove((owner, name))

    @rule(owner=owners, name=names, to=owners, new=names)
    def move(self, owner: str, name: str, to: str, new: str) -> None:
        text = self.known.get((owner, name))
        if text is None or (to, new) in self.known:
            return
        self.newest = self.store().import_(self.store().export(name, owner), new, to)
        assert self.store().get(new, to).tokens == tokens_of(text.numbers)
        self.store().delete(new, to)

    @rule(num=st.integers(0, 2))
    def expire(self, num: int) -> None:
        """At a moment when the sessions changed first are just too old."""
        gone = self.order[:num]
        if len(gone) == len(self.order):
            return
        first = {(row.name, owner): row for owner in ("ann", "bob") for row in self.listed(owner)}
        owner, name = self.order[num]
        assert set(self.store().expire(first[name, owner].changed + AGE_S)) == set(gone)
        self.order = self.order[num:]
        for key in gone:
            del self.known[key]

    def listed(self, owner: str) -> tuple[Any, ...]:
        return self.store().list(owner)

    @invariant()
    def everything_is_as_the_dictionary_says(self) -> None:
        for owner in ("ann", "bob"):
            want = sorted(name for whose, name in self.known if whose == owner)
            assert [row.name for row in self.listed(owner)] == want
        for (owner, name), text in self.known.items():
            turns = self.store().turns(name, owner)
            assert [turn.version for turn in turns] == text.versions
            assert {turn.version for turn in turns if turn.kept} == text.kept
            stored = self.store().get(name, owner)
            assert stored.version == text.versions[-1]
            assert stored.tokens == tokens_of(text.numbers)
            assert equal_states(stored.state, made_state(IDENTITY, text.numbers[-1]))

    @invariant()
    def no_state_is_left_over(self) -> None:
        kept = {version for text in self.known.values() for version in text.kept}
        assert len(self.place.states()) == len(kept)


EXAMPLES = settings(max_examples=12, stateful_step_count=20)


def test_in_a_folder(folder: Place) -> None:
    class InFolder(Sessions):
        place = folder

        def clear(self) -> None:
            shutil.rmtree(folder.address)

    run_state_machine_as_test(InFolder, settings=EXAMPLES)


def test_in_redis(redis_server: RedisServer) -> None:
    class InRedis(Sessions):
        place = redis_server.place()

        def clear(self) -> None:
            redis_server.client.flushall()

    run_state_machine_as_test(InRedis, settings=EXAMPLES)
