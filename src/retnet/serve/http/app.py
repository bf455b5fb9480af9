"""The application: routes, errors and the gate put together."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import time
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp

from retnet.data import Tokenizer
from retnet.serve import page
from retnet.serve.engine import Engine
from retnet.serve.http import chat, completions, errors, plain_routes, responses, session_routes
from retnet.serve.http.chat_template import ChatTemplate
from retnet.serve.http.context import Context, Limits
from retnet.serve.http.expiring import expiring
from retnet.serve.http.gate import Gate
from retnet.serve.http.heap import tidy_heap
from retnet.serve.http.keys import Keys
from retnet.serve.http.metrics import Metrics
from retnet.serve.http.schemas import ErrorAnswer
from retnet.serve.sessions import Identity, SessionStore
from retnet.serve.worker import Worker

ERRORS = (400, 401, 404, 405, 408, 409, 413, 429, 500, 503)

ERROR_SCHEMA = {"$ref": "#/components/schemas/ErrorAnswer"}


def create_app(
    engine: Engine,
    tokenizer: Tokenizer,
    *,
    model: str,
    limits: Limits | None = None,
    keys: Keys | None = None,
    sessions: SessionStore | None = None,
    identity: Identity | None = None,
    origins: tuple[str, ...] = (),
) -> tuple[ASGIApp, Context]:
    """Make the application; it runs the engine while it runs itself.

    Args:
        engine: idle; nobody else may step it.
        tokenizer: the engine's.
        model: the name that clients must give.
        limits: see `Limits`.
        keys: who may ask; None lets everybody.
        sessions: where sessions are kept; None for no sessions.
        identity: of the model, so that clients may carry its states; None: they may not.
        origins: of web pages elsewhere that may ask from a browser.

    Returns:
        The application, and its parts.
    """
    context = Context(
        model=model,
        created=int(time()),
        worker=Worker(engine),
        tokenizer=tokenizer,
        template=ChatTemplate(tokenizer),
        limits=limits or Limits(),
        metrics=Metrics(engine),
        sessions=sessions,
        identity=identity,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        context.worker.start()
        async with expiring(context), tidy_heap():
            yield
        await context.worker.stop()

    app = FastAPI(
        title="retnet",
        lifespan=lifespan,
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
        responses={status: {"model": ErrorAnswer} for status in ERRORS},
    )
    app.state.context = context
    errors.install(app)
    for part in (plain_routes, completions, chat, responses, session_routes):
        app.include_router(part.router)
    page.mount(app)
    app.openapi = _documented(app)
    gated: ASGIApp = Gate(app, context, keys)
    if origins:
        gated = CORSMiddleware(
            gated,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    return gated, context


def _documented(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """The document of the API, without the answer 422, which is never given."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version="1", routes=app.routes)
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
                    for status, answer in operation["responses"].items():
                        if int(status) >= 400:  # FastAPI thinks they are as the route's others
                            answer["content"] = {"application/json": {"schema": ERROR_SCHEMA}}
            for name in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(name, None)
            app.openapi_schema = document
        return app.openapi_schema

    return openapi
