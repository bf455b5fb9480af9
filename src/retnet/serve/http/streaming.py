"""Server-sent events, and answers that end when the client leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from retnet.serve.http.errors import ApiError, AsciiJSON, as_api_error
from retnet.serve.http.exchange import Exchange
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


@runtime_checkable
class Answering(Protocol):
    """What a route makes of the texts that it asked for.

    Attributes:
        done: what a stream ends with.
    """

    done: bytes

    async def whole(self) -> dict[str, Any]:
        """All at once."""
        ...

    def frames(self) -> AsyncIterator[dict[str, Any] | None]:
        """As they grow; None is a ping."""
        ...

    def failed(self, error: ApiError) -> dict[str, Any]:
        """The last frame, if something went wrong on the way."""
        ...


def frame(content: dict[str, Any]) -> bytes:
    """One event, with its name where it has one."""
    name = f"event: {content['type']}\n" if "type" in content else ""
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return f"{name}data: {text}\n\n".encode("utf-8", "replace")


class EventStream(StreamingResponse):
    """Frames of an answer, which is called off when the client leaves, even before the first."""

    def __init__(self, answer: Answering, end: Callable[[], None]) -> None:
        """Send frames. `end` is called once in any case."""
        super().__init__(
            _encoded(answer),
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


async def _encoded(answer: Answering) -> AsyncIterator[bytes]:
    try:
        async for content in answer.frames():
            yield PING if content is None else frame(content)
    except (ApiError, ValueError) as error:  # the status is sent already: the error is a frame
        yield frame(answer.failed(as_api_error(error)))
    yield answer.done


async def answered(
    request: Request, exchange: Exchange, answer: Answering, *, stream: bool
) -> Response:
    """Send an answer, whole or as it grows; then the exchange is over."""
    if stream:
        return EventStream(answer, exchange.end)
    try:
        return AsciiJSON(await unless_gone(request, answer.whole(), exchange.texts.run))
    finally:
        exchange.end()


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
