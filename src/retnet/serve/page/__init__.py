"""The page at `/`: files that a browser runs as they are, and that ask no other host.

They are public, as they say nothing of the model: what they ask for is not.
"""

from pathlib import Path, PurePath

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

__all__ = ["is_public", "mount"]

FOLDER = Path(__file__).parent / "static"
PREFIX = "/page"

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Browsers believe them, and the tables of some systems are wrong."""

POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing from elsewhere, no script or style in the markup, and no text that becomes markup."""

HEADERS = {
    "Cache-Control": "no-cache",  # files name each other without versions: ask, and be told 304
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def is_public(path: str) -> bool:
    """Whether a path is one of the page's files, which need no key."""
    return path == "/" or path.startswith(f"{PREFIX}/")


def mount(app: FastAPI) -> None:
    """Serve the page from an application."""
    files = _Files(directory=FOLDER)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.mount(PREFIX, files)


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        if "content-type" in response.headers:
            response.headers["content-type"] = MEDIA_TYPES[PurePath(path).suffix]
        return response
