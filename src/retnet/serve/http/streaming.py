"""Server-sent events, and answers that end when the client leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from retnet.serve.http.continuing import Continuing
from retnet.serve.http.errors import ApiError, AsciiJSON, as_api_error, error_body
from retnet.serve.worker import Run

Answer = TypeVar("Answer")

DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "text/event-stream": {}}}
}
"""What routes that may stream answer with."""

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

LEFT = 499
"""The status of a request whose client has left; nobody reads it but the log."""


def frame(content: dict[str, Any]) -> bytes:
    """One event."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode("utf-8", "replace")


class EventStream(StreamingResponse):
    """Frames of a run, which is called off when the client leaves, even before the first."""

    def __init__(
        self, frames: AsyncIterator[dict[str, Any] | None], end: Callable[[], None]
    ) -> None:
        """Send frames; None is a ping. `end` is called once in any case."""
        super().__init__(
            _encoded(frames),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def _encoded(frames: AsyncIterator[dict[str, Any] | None]) -> AsyncIterator[bytes]:
    try:
        async for content in frames:
            yield PING if content is None else frame(content)
    except (ApiError, ValueError) as error:  # the status is sent already: the error is a frame
        told = as_api_error(error)
        yield frame(error_body(told.status, str(told), told.param, told.code))
    yield DONE


class Answering(Protocol):
    """What a route knows of the texts that it asked for."""

    async def whole(self) -> dict[str, Any]:
        """All at once."""
        ...

    def frames(self) -> AsyncIterator[dict[str, Any] | None]:
        """As they grow; None is a ping."""
        ...


async def answered(
    request: Request, answer: Answering, run: Run, session: Continuing | None, *, stream: bool
) -> Response:
    """Send an answer, whole or as it grows; then the run is over and the session free."""

    def end() -> None:
        run.cancel()
        if session is not None:
            session.release()

    if stream:
        return EventStream(answer.frames(), end)
    try:
        return AsciiJSON(await unless_gone(request, answer.whole(), run))
    finally:
        end()


async def unless_gone(request: Request, work: Awaitable[Answer], run: Run) -> Answer:
    """Do some work on a run, which is called off if the client leaves before it is done."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(LEFT, "the client has left")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        run.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
