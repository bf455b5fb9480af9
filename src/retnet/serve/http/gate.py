"""What every request passes: an id, its key, the limits of its body, and a line in the log."""

import asyncio
import json
import logging
import re
import secrets
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retnet.serve import page
from retnet.serve.http.carried import base64_length
from retnet.serve.http.context import Context
from retnet.serve.http.errors import ApiError, response_of
from retnet.serve.http.keys import Keys

OPEN_PATHS = ("/health", "/ready")
"""What needs no key: whether the server is alive is nobody's secret."""

ALWAYS_PATHS = (*OPEN_PATHS, "/metrics")
"""What is answered while the server is about to end."""

STATE_PATHS = ("/v1/completions", "/v1/chat/completions")
"""Where a body may carry a state."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""What is counted apart; a client may make up as many others as it likes."""

REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)

log = logging.getLogger("retnet.serve")


class Gate:
    """An ASGI application around another.

    It does not look into bodies, so no text of a prompt can reach the log from here.
    """

    def __init__(self, app: ASGIApp, context: Context, keys: Keys | None) -> None:
        """Guard an application; without keys everybody may ask."""
        self.app = app
        self.context = context
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, headers = perf_counter(), Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        scope["noted"] = {}  # what a route has to say in the log
        status = 499  # the client left before there was an answer

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            refused = self._refusal(scope, headers)
            if refused is not None:
                await response_of(refused)(scope, receive, tell)
            else:
                await self.app(scope, self._limited(scope, receive), tell)
        finally:
            self._note(scope, request_id, status, perf_counter() - begin)

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        path = scope["path"]
        is_open = path in OPEN_PATHS or page.is_public(path)
        if self.keys is not None and not is_open:
            owner = self.keys.owner(headers.get("authorization", ""))
            if owner is None:
                return ApiError(
                    401,
                    "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            scope["owner"] = owner
        if self.context.draining and path not in ALWAYS_PATHS:
            return ApiError(
                503,
                "the server is shutting down; try again",
                code="shutting_down",
                headers={"Retry-After": "1", "Connection": "close"},
            )
        length, limit = headers.get("content-length", "0"), self._body_limit(scope)
        if length.isdecimal() and (len(length) > 18 or int(length) > limit):
            return _too_large(limit)
        return None

    def _body_limit(self, scope: Scope) -> int:
        """Bytes of a body, with the state that it may carry."""
        context = self.context
        if scope["path"] in STATE_PATHS:
            return context.limits.body_bytes + base64_length(context.state_limit)
        if scope["method"] == "PUT":  # a session's file
            return context.limits.body_bytes + context.limits.state_bytes
        return context.limits.body_bytes

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        limits, most = self.context.limits, self._body_limit(scope)
        num_bytes, deadline, complete = 0, perf_counter() + limits.body_s, False

        async def limited() -> Message:
            nonlocal num_bytes, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0, deadline - perf_counter()))
            except TimeoutError:
                raise HTTPException(
                    408, f"the body did not come within {limits.body_s:g} seconds"
                ) from None
            num_bytes += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if num_bytes > most:
                raise HTTPException(413, str(_too_large(most)))
            return message

        return limited

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.context.metrics.http_requests.labels(route, method, status).inc()
        line = {
            "event": "request",
            "id": request_id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            **scope["noted"],
        }
        log.info(json.dumps(line))


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, f"the body has more than {limit} bytes; send less", code="request_too_large"
    )
