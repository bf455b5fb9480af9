"""A request for texts on its way: what it goes on from, its texts, and where their state goes."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import Any, NamedTuple

from fastapi import Request

from retnet.serve import engine
from retnet.serve.http.context import context_of
from retnet.serve.http.keeping import Keeping, turn_of
from retnet.serve.http.texts import Texts, new_id


class Asked(NamedTuple):
    """What a route asks of the engine.

    Attributes:
        requests: with equal numbers of samples.
        field: what the client calls the prompt.
        begins: characters before each text; none where it is empty.
    """

    requests: Sequence[engine.Request]
    field: str
    begins: Sequence[int] = ()


class Exchange:
    """One HTTP request for texts.

    Attributes:
        context: the server's parts.
        keeping: see there.
        texts: known when `begin` has returned.
    """

    texts: Texts

    def __init__(self, request: Request, keeping: Keeping) -> None:
        """Take over `keeping`; `begin` must follow."""
        self.context = context_of(request)
        self.keeping = keeping
        self._noted: dict[str, Any] = request.scope["noted"]
        self._requests: Sequence[engine.Request] = ()

    async def begin(self, ask: Callable[[], Asked]) -> None:
        """Look up what was before, ask the route, which may be slow, and submit; then `end` it.

        Raises:
            ApiError: something is refused; nothing needs an end then.
            QueueFull: likewise.
            SessionError: likewise.
        """
        started = False
        try:
            await self.keeping.open()
            asked = await asyncio.to_thread(ask)
            self._requests = asked.requests
            self.texts = Texts(self.context, asked.requests, asked.field, asked.begins)
            started = True
        finally:
            if not started:
                self.keeping.release()

    def end(self) -> None:
        """Call off what still runs, and let others go on from here."""
        self.texts.run.cancel()
        self.keeping.release()

    def head(self, prefix: str, kind: str) -> dict[str, Any]:
        """What answers and their frames begin with."""
        return {
            "id": new_id(prefix),
            "object": kind,
            "created": int(time()),
            "model": self.context.model,
        }

    def usage(self) -> dict[str, Any]:
        """Tokens of all texts, which have ended; the log has them too."""
        usage = self.texts.usage(self.keeping.before.num_tokens)
        self._noted.update(usage)
        return usage

    async def keep(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the one text, where that is asked for; return what the client is told of it."""
        if not self.keeping.keeps:
            return {}
        (request,), (progress,) = self._requests, self.texts.progress
        return await self.keeping.keep(turn_of(request.prompt, progress, meta))
