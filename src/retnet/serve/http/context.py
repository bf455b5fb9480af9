"""What every route needs, and the limits that all obey."""

from dataclasses import dataclass, field

from fastapi import Request

from retnet.data import Tokenizer
from retnet.serve.http.chat_template import ChatTemplate
from retnet.serve.http.metrics import Metrics
from retnet.serve.sessions import Identity, SessionStore
from retnet.serve.worker import Worker

STATE_ROOM = 1 << 20
"""Bytes for what an exported session has beside its state: its text."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a client may ask for.

    Attributes:
        body_bytes: of a request, its state not counted.
        state_bytes: of a state that a request carries or takes home, or of a session's file.
        body_s: until all of it has come.
        max_tokens: that one text may be asked to have.
        chat_tokens: of an answer in a chat whose request does not say; `max_tokens` at most.
        prompts: in one request for completions.
        expire_s: between two looks at what is to expire.
        ping_s: of silence in a stream, after which a comment keeps the connection open.

    Raises:
        ValueError: a value is not positive.
    """

    body_bytes: int = 4 << 20
    state_bytes: int = 64 << 20
    body_s: float = 30.0
    max_tokens: int = 4096
    chat_tokens: int = 512
    prompts: int = 32
    expire_s: float = 300.0
    ping_s: float = 15.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} ({value}) must be positive")


@dataclass(kw_only=True)
class Context:
    """A running server's parts.

    Attributes:
        model: its name.
        created: when it was loaded, in seconds since 1970.
        draining: whether it takes no more requests because it is about to end.
        identity: of the model whose states clients may carry; None: they may not.
        busy_sessions: (owner, name) of sessions that a request is continuing.
    """

    model: str
    created: int
    worker: Worker
    tokenizer: Tokenizer
    template: ChatTemplate
    limits: Limits
    metrics: Metrics
    sessions: SessionStore | None = None
    identity: Identity | None = None
    draining: bool = False
    busy_sessions: set[tuple[str, str]] = field(default_factory=set)

    @property
    def row_bytes(self) -> int:
        """Of a state at most."""
        engine = self.worker.engine
        return engine.stats.pool_bytes // engine.config.max_running

    @property
    def state_limit(self) -> int:
        """Bytes of a state in a body: what is allowed, or what one can have and a little more."""
        return min(self.limits.state_bytes, self.row_bytes + STATE_ROOM)


def context_of(request: Request) -> Context:
    """The server's parts, for a route."""
    return request.app.state.context


def owner_of(request: Request) -> str:
    """Whose request it is: what the key's check has noted; empty where keys are not asked for."""
    return request.scope.get("owner", "")
