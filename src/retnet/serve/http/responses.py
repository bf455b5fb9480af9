"""`/v1/responses`: answers that the server remembers, each a place to go on from."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from time import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from retnet.serve import engine
from retnet.serve.http.asks import answer_tokens, check_model, choosing, grammar_of
from retnet.serve.http.chained import Chained, delete_response, stored_response
from retnet.serve.http.chat import prompt_of
from retnet.serve.http.chat_template import Message, message_of
from retnet.serve.http.context import Context, context_of, owner_of
from retnet.serve.http.errors import ApiError, AsciiJSON
from retnet.serve.http.exchange import Asked, Exchange
from retnet.serve.http.keeping import Before
from retnet.serve.http.pieces import Piece, chat_logprobs
from retnet.serve.http.schemas import ResponseBody
from retnet.serve.http.streaming import DOCUMENTED, answered
from retnet.serve.http.texts import merged, new_id

router = APIRouter(prefix="/v1/responses")

LOGPROBS = "message.output_text.logprobs"


@router.post("", responses=DOCUMENTED)
async def create(body: ResponseBody, request: Request) -> Response:
    """Answer; with `previous_response_id`, `input` is what is new."""
    context, name = context_of(request), new_id("resp").replace("-", "_")
    check_model(context, body.model)
    _check(context, body)
    form = await asyncio.to_thread(
        grammar_of,
        context.worker.engine,
        body.structured_outputs,
        None if body.text is None else body.text.format,
        "text.format",
    )
    whose, before = owner_of(request), body.previous_response_id
    keeping = Chained(context, whose, previous=before, name=name, store=body.store)
    exchange = Exchange(request, keeping)

    def ask() -> Asked:
        prompt = prompt_of(context, _messages(body, keeping.before), keeping.before, "input")
        most = answer_tokens(context, body.max_output_tokens, len(prompt), keeping)
        settings = choosing(context, body, keeping, most, "max_output_tokens")
        asked = engine.Request(
            prompt=tuple(prompt),
            stop=context.template.stop,
            logprobs=(body.top_logprobs or 0) if LOGPROBS in (body.include or ()) else None,
            grammar=form,
            **settings,
        )
        return Asked([asked], "input")

    await exchange.begin(ask)
    answer = ResponseAnswer(exchange, body, name, keeping)
    return await answered(request, exchange, answer, stream=bool(body.stream))


@router.get("/{response_id}")
async def retrieve(
    response_id: str, request: Request, stream: Annotated[bool, Query()] = False
) -> Response:
    """A response that was stored."""
    if stream:
        raise ApiError(400, "a response that has ended is not streamed again", param="stream")
    return AsciiJSON(await stored_response(context_of(request), owner_of(request), response_id))


@router.delete("/{response_id}")
async def delete(response_id: str, request: Request) -> Response:
    """Forget a response; those that went on from it stay."""
    await delete_response(context_of(request), owner_of(request), response_id)
    return AsciiJSON({"id": response_id, "object": "response", "deleted": True})


def _check(context: Context, body: ResponseBody) -> None:
    if body.top_logprobs and LOGPROBS not in (body.include or ()):
        raise ApiError(400, f"top_logprobs needs include = [{LOGPROBS!r}]", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream = true", param="stream_options")
    if body.truncation == "auto" and context.worker.engine.max_context is not None:
        raise ApiError(
            400,
            "this model's states grow, and what they have read cannot be dropped: "
            "leave truncation out",
            param="truncation",
        )


def _messages(body: ResponseBody, before: Before) -> list[Message]:
    """What is new: instructions that a state has read already are not."""
    messages = []
    if body.instructions not in (None, before.remembered.instructions):
        messages.append(message_of("system", body.instructions))
    if isinstance(body.input, str):
        return [*messages, message_of("user", body.input)]
    return [*messages, *(message_of(one.role, one.content) for one in body.input)]


class ResponseAnswer:
    """A response as OpenAI's clients expect it: whole, or as events that are numbered."""

    done = b""

    def __init__(self, exchange: Exchange, body: ResponseBody, name: str, keeping: Chained) -> None:
        """Answer what an exchange has begun; `name` is the id."""
        self._exchange = exchange
        self._texts = exchange.texts
        self._body = body
        self._keeping = keeping
        self._id, self._item = name, new_id("msg").replace("-", "_")
        self._created = int(time())
        self._numbers = count()

    async def whole(self) -> dict[str, Any]:
        """All at once."""
        (pieces,) = await self._texts.complete()
        return await self._ended(merged(pieces))

    async def frames(self) -> AsyncIterator[dict[str, Any] | None]:
        """From `response.created` to how it ended."""
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        going = self._response("in_progress", [])
        yield self._event("response.created", response=going)
        yield self._event("response.in_progress", response=going)
        item = self._message("in_progress", [])
        yield self._event("response.output_item.added", output_index=0, item=item)
        part = self._part(Piece("", (), None))
        yield self._event("response.content_part.added", **place, part=part)
        pieces = []
        async for grown in self._texts.grow():
            if grown is None:
                yield None
                continue
            piece = grown.piece
            pieces.append(piece)
            if piece.text or piece.entries:
                told = self._logprobs(piece)
                yield self._event(
                    "response.output_text.delta", **place, delta=piece.text, logprobs=told
                )
        whole = merged(pieces)
        response = await self._ended(whole)  # before the client learns of the end, it is kept
        (item,) = response["output"]
        (part,) = item["content"]
        told = self._logprobs(whole)
        yield self._event("response.output_text.done", **place, text=whole.text, logprobs=told)
        yield self._event("response.content_part.done", **place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{response['status']}", response=response)

    def failed(self, error: ApiError) -> dict[str, Any]:
        """The last event, if something went wrong on the way."""
        code = "invalid_prompt" if error.status < 500 else "server_error"
        response = self._response("failed", [])
        response["error"] = {"code": code, "message": str(error)}
        return self._event("response.failed", response=response)

    def _event(self, kind: str, **content: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(self._numbers), **content}

    async def _ended(self, piece: Piece) -> dict[str, Any]:
        status = "incomplete" if piece.finish_reason == "length" else "completed"
        response = self._response(status, [self._message(status, [self._part(piece)])])
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = int(time())
        usage = self._exchange.usage()
        response["usage"] = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        read = self._body.instructions or self._keeping.before.remembered.instructions
        await self._exchange.keep({"response": response, "instructions": read})
        return response

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self._body
        form = None if body.text is None else body.text.format
        plain = {"type": "text"}
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._exchange.context.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": self._keeping.keeps,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {
                "format": form.model_dump(by_alias=True, exclude_none=True) if form else plain,
                "verbosity": "medium",
            },
            "tool_choice": body.tool_choice or "auto",
            "tools": [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None,
            "user": body.user,
        }

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _part(self, piece: Piece) -> dict[str, Any]:
        told = self._logprobs(piece)
        return {"type": "output_text", "text": piece.text, "annotations": [], "logprobs": told}

    def _logprobs(self, piece: Piece) -> list[dict[str, Any]]:
        if LOGPROBS not in (self._body.include or ()):
            return []
        return chat_logprobs(self._exchange.context.tokenizer, piece.entries)["content"]
