"""Sessions: states that outlive the process, by name."""

from retnet.serve.sessions.carried import give, take
from retnet.serve.sessions.errors import (
    SessionError,
    SessionExists,
    SessionMissing,
    SessionRefused,
    SessionsUnavailable,
    VersionConflict,
)
from retnet.serve.sessions.identity import Identity, identify
from retnet.serve.sessions.names import check_name
from retnet.serve.sessions.store import SessionStore
from retnet.serve.sessions.values import Limits, Listed, Stored, Turn, TurnInfo

__all__ = [
    "Identity",
    "Limits",
    "Listed",
    "SessionError",
    "SessionExists",
    "SessionMissing",
    "SessionRefused",
    "SessionStore",
    "SessionsUnavailable",
    "Stored",
    "Turn",
    "TurnInfo",
    "VersionConflict",
    "check_name",
    "give",
    "identify",
    "take",
]
