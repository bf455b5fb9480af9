"""`/v1/sessions`: states that have a name. Everybody sees their own only."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from retnet.serve.http.context import context_of, owner_of
from retnet.serve.http.continuing import Continuing, store_of
from retnet.serve.http.errors import AsciiJSON
from retnet.serve.http.schemas import ForkBody, RenameBody, RollbackBody

router = APIRouter(prefix="/v1/sessions")

STATE_TYPE = "application/octet-stream"


class StateFile(Response):
    """A safetensors file."""

    media_type = STATE_TYPE


@router.get("")
async def sessions(
    request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 100, after: str = ""
) -> Response:
    """Sessions by name, from the one after `after`."""
    store = store_of(context_of(request))
    found = await asyncio.to_thread(store.list, owner_of(request), limit, after)
    data = [{"object": "session", **asdict(one)} for one in found]
    return AsciiJSON({"object": "list", "data": data, "has_more": len(data) == limit})


@router.get("/{name}")
async def session(name: str, request: Request) -> Response:
    """A session's turns, with what was said in each."""
    store = store_of(context_of(request))
    turns = await asyncio.to_thread(store.turns, name, owner_of(request))
    return AsciiJSON(
        {
            "object": "session",
            "name": name,
            "version": turns[-1].version,
            "num_tokens": turns[-1].num_tokens,
            "turns": [asdict(turn) for turn in turns],
        }
    )


@router.delete("/{name}")
async def delete(name: str, request: Request) -> Response:
    """Forget a session."""
    context, owner = context_of(request), owner_of(request)
    turn = Continuing(context, owner, name)
    try:
        await asyncio.to_thread(store_of(context).delete, name, owner)
    finally:
        turn.release()
    return AsciiJSON({"object": "session.deleted", "name": name, "deleted": True})


@router.post("/{name}/fork")
async def fork(name: str, body: ForkBody, request: Request) -> Response:
    """A second session that begins where this one is, or was."""
    store, owner = store_of(context_of(request)), owner_of(request)
    version = await asyncio.to_thread(store.fork, name, body.new_name, owner, body.version)
    return _named(body.new_name, version)


@router.post("/{name}/rename")
async def rename(name: str, body: RenameBody, request: Request) -> Response:
    """Give a session another name."""
    context, owner = context_of(request), owner_of(request)
    turn = Continuing(context, owner, name)
    try:
        await asyncio.to_thread(store_of(context).rename, name, body.new_name, owner)
    finally:
        turn.release()
    return AsciiJSON({"object": "session", "name": body.new_name})


@router.post("/{name}/rollback")
async def rollback(name: str, body: RollbackBody, request: Request) -> Response:
    """Go back to an earlier turn; those after it are gone."""
    context, owner = context_of(request), owner_of(request)
    turn = Continuing(context, owner, name)
    try:
        version = await asyncio.to_thread(store_of(context).rollback, name, owner, body.version)
    finally:
        turn.release()
    return _named(name, version)


@router.get("/{name}/text")
async def text(name: str, request: Request) -> Response:
    """All that the model has read and written in a session, as text."""
    context, owner = context_of(request), owner_of(request)
    stored = await asyncio.to_thread(store_of(context).get, name, owner)
    data = b"".join(map(context.tokenizer.id_bytes, stored.tokens))
    told = {"num_tokens": stored.num_tokens, "text": data.decode(errors="replace")}
    return AsciiJSON({"object": "session.text", "name": name, "version": stored.version, **told})


@router.get("/{name}/state", response_class=StateFile)
async def export(
    name: str, request: Request, version: Annotated[int | None, Query(ge=0, lt=1 << 31)] = None
) -> Response:
    """A session as a safetensors file."""
    store = store_of(context_of(request))
    data = await asyncio.to_thread(store.export, name, owner_of(request), version)
    return StateFile(data)


@router.put(
    "/{name}/state",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {STATE_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def import_state(name: str, request: Request) -> Response:
    """A new session from such a file, which must be this model's."""
    store, owner = store_of(context_of(request)), owner_of(request)
    data = await request.body()
    version = await asyncio.to_thread(store.import_, data, name, owner)
    return _named(name, version)


def _named(name: str, version: Any) -> Response:
    return AsciiJSON({"object": "session", "name": name, "version": version})
