"""Errors as OpenAI's clients expect them: one shape, whatever went wrong."""

import json
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from retnet.serve.engine import QueueFull
from retnet.serve.sessions import (
    SessionError,
    SessionExists,
    SessionMissing,
    SessionsUnavailable,
    VersionConflict,
)

CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
}


class ApiError(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP.
        param: the field that is wrong.
        code: a word for programs.
        headers: to send along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Say what is wrong."""
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


class AsciiJSON(JSONResponse):
    """JSON in which any character may be quoted, even half of a surrogate pair."""

    def render(self, content: Any) -> bytes:
        """Encode."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of an error."""
    kinds = {429: "rate_limit_error", 401: "authentication_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error of the rooms below."""
    match error:
        case ApiError():
            return error
        case QueueFull():
            seconds = max(1, round(error.retry_after_s))
            return ApiError(
                429, str(error), code="queue_full", headers={"Retry-After": str(seconds)}
            )
        case SessionMissing():
            return ApiError(404, str(error), param="session", code="session_not_found")
        case SessionExists():
            return ApiError(409, str(error), param="session", code="session_exists")
        case VersionConflict():
            return ApiError(409, str(error), param="session", code="version_conflict")
        case SessionsUnavailable():
            return ApiError(
                503, str(error), code="sessions_unavailable", headers={"Retry-After": "1"}
            )
        case SessionError():
            return ApiError(400, str(error), param="session", code="session_refused")
    return ApiError(400, str(error))


def body_of(error: ApiError) -> dict[str, Any]:
    """What the client reads of it."""
    return error_body(error.status, str(error), error.param, error.code)


def response_of(error: ApiError) -> AsciiJSON:
    """An error on its way."""
    return AsciiJSON(body_of(error), error.status, headers=error.headers)


def install(app: FastAPI) -> None:
    """Make an app answer all errors in this shape."""

    async def api_error(_: Request, error: Exception) -> AsciiJSON:
        return response_of(as_api_error(error))

    async def http_error(_: Request, error: Exception) -> AsciiJSON:
        assert isinstance(error, HTTPException)
        code = CODES.get(error.status_code)
        headers = error.headers
        return response_of(
            ApiError(error.status_code, str(error.detail), code=code, headers=headers)
        )

    async def invalid(_: Request, error: Exception) -> AsciiJSON:
        assert isinstance(error, RequestValidationError)
        return response_of(_first_of(error))

    async def unexpected(_: Request, __: Exception) -> AsciiJSON:
        return response_of(ApiError(500, "the server failed; its log says more"))

    for kind in (ApiError, QueueFull, SessionError):
        app.add_exception_handler(kind, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(500, unexpected)


def _first_of(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it cannot be read")
        return ApiError(400, f"the body must be JSON: {reason}", code="invalid_json")
    # where one of several types may be, the one that was meant is wrong in the depth
    ways = [
        (_field(one["loc"], one["type"], error.body), one)
        for one in error.errors()
        if one["loc"][:2] == first["loc"][:2]
    ]
    param, found = max(ways, key=lambda way: len(re.findall(r"[.\[]", way[0] or "")))
    where = f"{param}: " if param else ""
    return ApiError(400, f"{where}{found['msg']}", param=param, code=found["type"])


def _field(loc: tuple[int | str, ...], kind: str, body: Any) -> str | None:
    """The field's name as the client would write it: `messages[0].content`."""
    if loc[0] != "body":
        return str(loc[-1])
    name, here = "", body
    for number, part in enumerate(loc[1:], 2):
        if isinstance(here, dict) and part in here:
            here, name = here[part], f"{name}.{part}"
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here, name = here[part], f"{name}[{part}]"
        elif kind == "missing" and number == len(loc):
            name = f"{name}.{part}"
    return name.lstrip(".") or None
