"""Where sessions are kept: what a folder and Redis must both do, for `SessionStore`.

A version is a number that is given once, in rising order, to a turn that is committed: the same
version is the same text and the same state, also in a fork. A state is kept under a name of its own
that is never given twice, and is never changed; several turns may need it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor

Result = TypeVar("Result")


class Key(NamedTuple):
    """What a session is found by."""

    owner: str
    name: str


class Kept(NamedTuple):
    """A state that is kept: the name of its file or record, and its bytes."""

    state: str
    num_bytes: int


class Head(NamedTuple):
    """A session without its text.

    Attributes:
        fingerprint: of its model.
        config: likewise, of the config alone.
        parent: where it was forked from, `name@version`; empty if nowhere.
        created: seconds since 1970.
        changed: likewise.
        version: of its newest turn; 0 before the first, and where the record has been lost.
        num_tokens: of its text.
        meta: of its newest turn, JSON.
        states: those that are kept, by version, the oldest first.
    """

    fingerprint: str
    config: str
    parent: str
    created: float
    changed: float
    version: int = 0
    num_tokens: int = 0
    meta: str = "{}"
    states: Mapping[int, Kept] = {}


LOST = Head("", "", "", 0.0, 0.0)
"""A session whose name is known and whose record is gone."""


class TurnRow(NamedTuple):
    """A turn without its tokens."""

    version: int
    num_tokens: int
    meta: str
    created: float
    kept: bool


class Found(NamedTuple):
    """A session at one of its turns.

    Attributes:
        head: of the session.
        turn: None where there is no such version.
        text: all tokens until the turn, uint32 little-endian.
    """

    head: Head
    turn: TurnRow | None
    text: bytes


class Staged(NamedTuple):
    """A state on its way: it is written already, or `data` goes with the turn."""

    kept: Kept
    data: bytes | None


class NewTurn(NamedTuple):
    """A turn that is added; `num_tokens` are those of the whole text with it."""

    tokens: bytes
    num_tokens: int
    meta: str
    created: float
    state: Staged


@runtime_checkable
class Change(Protocol):
    """One transaction: all of it happens, at one moment, or nothing.

    What it reads is as it will be at that moment. Read a session before you write to it; what is
    written is not read back.

    Attributes:
        dropped: states that no turn needs any more.
    """

    dropped: list[Kept]

    def head(self, key: Key) -> Head | None:
        """The session, if there is one."""
        ...

    def num_bytes(self) -> int:
        """Of all states together."""
        ...

    def begin(self, key: Key, head: Head) -> None:
        """Add a session without turns."""
        ...

    def append(self, key: Key, turn: NewTurn) -> int:
        """Add a turn; return its version."""
        ...

    def forget(self, key: Key, versions: Sequence[int]) -> None:
        """Keep the tokens of these turns, and not their states."""
        ...

    def cut(self, key: Key, version: int, changed: float) -> None:
        """Remove the turns after one whose state is kept."""
        ...

    def remove(self, key: Key) -> None:
        """Remove a session."""
        ...

    def copy(self, key: Key, version: int, new: Key, head: Head) -> None:
        """Begin a session with the turns of another until a version; their states are shared."""
        ...

    def rename(self, key: Key, new: Key, changed: float) -> None:
        """Give a session another key, which is free, or the same."""
        ...


@runtime_checkable
class Records(Protocol):
    """Sessions in one place, for the threads of many processes.

    All methods raise SessionsUnavailable where the place cannot be reached or is full.
    """

    def change(self, work: Callable[[Change], Result]) -> Result:
        """Do some work in one transaction; it may be called again where another came between.

        An error that it raises undoes everything.
        """
        ...

    def head(self, key: Key) -> Head | None:
        """The session as it is now."""
        ...

    def find(self, key: Key, version: int | None) -> Found | None:
        """A session at its newest turn, or at another."""
        ...

    def turns(self, key: Key) -> list[TurnRow] | None:
        """The history of a session, the oldest turn first."""
        ...

    def page(self, owner: str, limit: int, after: str) -> list[tuple[str, Head]]:
        """An owner's sessions in the order of their names, those after a name."""
        ...

    def oldest(self) -> list[tuple[Key, float]]:
        """All sessions and when they changed, those changed first first."""
        ...

    def stage(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> AbstractContextManager[Staged]:
        """Prepare a state for a turn that is added inside the block; an error takes it back."""
        ...

    def load(self, state: str) -> tuple[dict[str, str], dict[str, Tensor]]:
        """Metadata and tensors of a state, as they were staged.

        Raises:
            FileNotFoundError: it is not there.
            SessionRefused: it is damaged.
        """
        ...

    def sweep(self) -> int:
        """Remove what killed processes left; return how many."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...
