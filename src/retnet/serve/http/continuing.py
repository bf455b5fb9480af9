"""A request that goes on with a session: its state before, and the commit after."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from retnet.serve.http.context import Context
from retnet.serve.http.errors import ApiError
from retnet.serve.http.pieces import Progress
from retnet.serve.sessions import SessionMissing, SessionStore, Stored, Turn


def store_of(context: Context) -> SessionStore:
    """Where sessions are.

    Raises:
        ApiError: nowhere.
    """
    if context.sessions is None:
        raise ApiError(
            400,
            "this server keeps no sessions; start it with --data-dir",
            param="session",
            code="sessions_off",
        )
    return context.sessions


class Continuing:
    """One turn of a session. Nothing is kept of a turn that is not committed.

    Attributes:
        stored: the session so far; None where it begins.
    """

    def __init__(self, context: Context, owner: str, name: str) -> None:
        """Take the session; `release` must follow."""
        self.stored: Stored | None = None
        self._store = store_of(context)
        self._busy = context.busy_sessions
        self._key = (owner, name)
        if self._key in self._busy:
            raise ApiError(
                409,
                "another request is continuing this session; wait for it, or fork the session",
                param="session",
                code="session_busy",
            )
        self._busy.add(self._key)

    async def open(self) -> None:
        """Look the session up; a name that is new begins one."""
        owner, name = self._key
        try:
            self.stored = await asyncio.to_thread(self._store.get, name, owner)
        except SessionMissing:
            self.stored = None

    def release(self) -> None:
        """Let others have it."""
        self._busy.discard(self._key)

    @property
    def num_tokens(self) -> int:
        """Of the text so far."""
        return 0 if self.stored is None else self.stored.num_tokens

    async def commit(
        self, prompt: Sequence[int], progress: Progress, meta: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Keep the turn; return what the client is told of it."""
        written = b"".join(map(progress.tokenizer.id_bytes, progress.tokens))
        shown = progress.text.encode("utf-8", "replace")
        tail = written.removeprefix(shown).decode(errors="replace") if written != shown else ""
        turn = Turn(
            state=progress.state,
            tokens=[*prompt, *progress.tokens],
            meta={**meta, "tail": tail},
        )
        owner, name = self._key
        expected = None if self.stored is None else self.stored.version
        version = await asyncio.to_thread(self._store.commit, name, owner, turn, expected)
        num_tokens = self.num_tokens + len(turn.tokens)
        return {"name": name, "version": version, "num_tokens": num_tokens}
