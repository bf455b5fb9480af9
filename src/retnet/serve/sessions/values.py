"""What callers give to a store of sessions, and what they get from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from retnet.model import DecoderState


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
        for name in ("memory_bytes", "disk_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} ({value}) must be 0 or more; 0 keeps none")
        if self.max_age_s is not None and not self.max_age_s > 0:
            raise ValueError(
                f"max_age_s ({self.max_age_s}) must be positive; leave it out to keep all"
            )


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
