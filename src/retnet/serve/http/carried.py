"""A text whose state its owner keeps: it comes with the request and goes with the answer."""

import asyncio
import base64
from typing import Any

from retnet.serve.http.context import Context
from retnet.serve.http.errors import ApiError
from retnet.serve.http.keeping import Before
from retnet.serve.sessions import Identity, SessionRefused, Turn, give, take

HEADER_BYTES = 1 << 16
"""Of a state's file beside its tensors, at most."""


class Carried:
    """A turn whose client keeps the state; the server keeps nothing. See `Keeping`."""

    def __init__(self, context: Context, state: str | None, *, returns: bool) -> None:
        """Check what needs no look into the state.

        Args:
            context: the server's parts.
            state: base64, as an answer had it; None where a text begins.
            returns: whether to give the next one back.

        Raises:
            ApiError: states are not carried here, or this one is too large.
        """
        param = "return_state" if state is None else "state"
        if context.identity is None:
            raise ApiError(400, "this server gives no states to clients", param=param)
        most = context.state_limit
        if returns and context.row_bytes + HEADER_BYTES > most:
            raise ApiError(
                400,
                f"a state of this model takes up to {context.row_bytes} bytes, and one that is "
                f"carried may have {most} (--max-state): use a session",
                param="return_state",
                code="state_too_large",
            )
        if state is not None and len(state) > base64_length(most):
            raise ApiError(
                400,
                f"state has {len(state)} characters, more than {most} bytes need (--max-state): "
                "use a session",
                param="state",
                code="state_too_large",
            )
        self.keeps = returns
        self.before = Before()
        self._identity: Identity = context.identity
        self._given = state

    async def open(self) -> None:
        """Read the state."""
        if self._given is not None:
            self.before = await asyncio.to_thread(_before, self._given, self._identity)
            self._given = None

    async def keep(self, turn: Turn) -> dict[str, Any]:
        """Write the state."""
        return {"state": await asyncio.to_thread(_text, turn, self._identity)}

    def release(self) -> None:
        """Nothing to do: any number of requests may go on from one state."""


def base64_length(num_bytes: int) -> int:
    """Characters that so many bytes take."""
    return 4 * ((num_bytes + 2) // 3)


def _before(text: str, identity: Identity) -> Before:
    try:
        found = take(base64.b64decode(text, validate=True), identity)
    except SessionRefused as error:
        raise ApiError(400, str(error), param="state", code="state_refused") from error
    except ValueError as error:
        raise ApiError(400, f"state is not base64: {error}", param="state") from error
    state = found.snapshot.state
    return Before.of(state, int(state.position[0]), found.meta, "state")


def _text(turn: Turn, identity: Identity) -> str:
    meta = {"tail": turn.meta["tail"]}  # and not what was said: a state does not grow
    return base64.b64encode(give(turn.state, meta, identity)).decode()
