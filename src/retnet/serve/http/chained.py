"""Responses that are kept: each is a state of its own, and any number may go on from it."""

import asyncio
from typing import Any

from retnet.serve.http.context import Context
from retnet.serve.http.continuing import store_of
from retnet.serve.http.errors import ApiError
from retnet.serve.http.keeping import Before
from retnet.serve.sessions import SessionMissing, SessionRefused, SessionStore, Turn

OWNERS = "responses:"
"""Before an owner of sessions, it owns responses: they are in nobody's list of sessions, and no
name of a session can be one of theirs."""


class Chained:
    """A response that begins where another has ended; see `Keeping`.

    It never changes the other, so two that go on from one are a fork.
    """

    def __init__(
        self, context: Context, owner: str, *, previous: str | None, name: str, store: bool | None
    ) -> None:
        """Say where it begins, and whether it is kept: where that is possible, if nobody says.

        Raises:
            ApiError: this server keeps none.
        """
        for param, asked in (("previous_response_id", previous), ("store", store)):
            if asked:
                store_of(context, param)
        self.keeps = context.sessions is not None and store is not False
        self.before = Before()
        self._context = context
        self._owner = OWNERS + owner
        self._previous = previous
        self._name = name

    async def open(self) -> None:
        """Read the state of the response before."""
        if self._previous is None:
            return
        param, store = "previous_response_id", store_of(self._context)
        try:
            stored = await asyncio.to_thread(store.get, self._previous, self._owner)
        except SessionMissing:
            raise ApiError(
                400,
                f"there is no response {self._previous!a}: it was not stored, or is gone",
                param=param,
                code="previous_response_not_found",
            ) from None
        except SessionRefused as error:
            raise ApiError(400, str(error), param=param, code="session_refused") from error
        num_tokens = int(stored.state.position[0])
        self.before = Before.of(stored.state, num_tokens, stored.meta, param)

    async def keep(self, turn: Turn) -> dict[str, Any]:
        """Write it under its id; the client knows that."""
        store = store_of(self._context)
        await asyncio.to_thread(store.commit, self._name, self._owner, turn, None)
        return {}

    def release(self) -> None:
        """Nothing to do: nobody was kept from anything."""


async def stored_response(context: Context, owner: str, name: str) -> dict[str, Any]:
    """A response that was kept, as its client saw it.

    Raises:
        ApiError: there is none.
    """
    try:
        turns = await asyncio.to_thread(_store(context).turns, name, OWNERS + owner)
    except SessionMissing:
        raise _missing(name) from None
    return turns[-1].meta["response"]


async def delete_response(context: Context, owner: str, name: str) -> None:
    """Forget a response; those that went on from it stay.

    Raises:
        ApiError: there is none.
    """
    try:
        await asyncio.to_thread(_store(context).delete, name, OWNERS + owner)
    except SessionMissing:
        raise _missing(name) from None


def _store(context: Context) -> SessionStore:
    return store_of(context, "response_id")


def _missing(name: str) -> ApiError:
    return ApiError(
        404,
        f"there is no response {name[:200]!a}: it was not stored, or is gone",
        param="response_id",
        code="response_not_found",
    )
