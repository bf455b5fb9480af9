"""Sessions: states that outlive the process, by name."""

from retnet.serve.sessions.carried import give, take
from retnet.serve.sessions.errors import (
    SessionError,
    SessionExists,
    SessionMissing,
    SessionRefused,
    VersionConflict,
)
from retnet.serve.sessions.identity import Identity, identify
from retnet.serve.sessions.store import (
    Limits,
    Listed,
    SessionStore,
    Stored,
    Turn,
    TurnInfo,
    check_name,
)

__all__ = [
    "Identity",
    "Limits",
    "Listed",
    "SessionError",
    "SessionExists",
    "SessionMissing",
    "SessionRefused",
    "SessionStore",
    "Stored",
    "Turn",
    "TurnInfo",
    "VersionConflict",
    "check_name",
    "give",
    "identify",
    "take",
]
