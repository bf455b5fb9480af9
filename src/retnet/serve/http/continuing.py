"""A request that goes on with a session: its state before, and the commit after."""

import asyncio
from typing import Any

from retnet.serve.http.context import Context
from retnet.serve.http.errors import ApiError
from retnet.serve.http.keeping import Before
from retnet.serve.sessions import SessionMissing, SessionStore, Turn, check_name


def store_of(context: Context, param: str = "session") -> SessionStore:
    """Where sessions are; `param` is the field that asks for one.

    Raises:
        ApiError: nowhere.
    """
    if context.sessions is None:
        raise ApiError(
            400,
            "this server keeps no sessions; start it with --data-dir",
            param=param,
            code="sessions_off",
        )
    return context.sessions


class Continuing:
    """One turn of a session, that nobody else may change meanwhile; see `Keeping`."""

    keeps = True

    def __init__(self, context: Context, owner: str, name: str) -> None:
        """Take the session; `release` must follow.

        Raises:
            ApiError: another request has it, or there are no sessions.
            SessionError: no session can have this name.
        """
        check_name(name)
        self.before = Before()
        self._version: int | None = None
        self._store = store_of(context)
        self._busy = context.busy_sessions
        self._key = (owner, name)
        self._committing: asyncio.Future[int] | None = None
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
            stored = await asyncio.to_thread(self._store.get, name, owner)
        except SessionMissing:
            return
        self._version = stored.version
        self.before = Before.of(stored.state, stored.num_tokens, stored.meta, "session")

    async def keep(self, turn: Turn) -> dict[str, Any]:
        """Commit the turn, which is done even if the client leaves meanwhile.

        Others may have the session as soon as that is done, and before the client learns of it.
        """
        owner, name = self._key
        commit = asyncio.to_thread(self._store.commit, name, owner, turn, self._version)
        self._committing = asyncio.ensure_future(commit)
        self._committing.add_done_callback(self._free)
        version = await asyncio.shield(self._committing)
        num_tokens = self.before.num_tokens + len(turn.tokens)
        return {"session": {"name": name, "version": version, "num_tokens": num_tokens}}

    def release(self) -> None:
        """Let others have it, if the turn was not worth a commit."""
        if self._committing is None:
            self._busy.discard(self._key)

    def _free(self, commit: asyncio.Future[int]) -> None:
        self._busy.discard(self._key)
        if not commit.cancelled():
            commit.exception()  # whoever waited for it was told; if nobody did, nobody asks
