"""`/v1/chat/completions`: answers in a chat."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from retnet.serve import engine
from retnet.serve.http.asks import answer_tokens, check, common, grammar_of, keeping_of
from retnet.serve.http.chat_template import Message, message_of
from retnet.serve.http.context import Context, context_of
from retnet.serve.http.errors import ApiError, body_of
from retnet.serve.http.exchange import Asked, Exchange
from retnet.serve.http.keeping import Before
from retnet.serve.http.pieces import Piece, chat_logprobs
from retnet.serve.http.schemas import ChatBody
from retnet.serve.http.streaming import DOCUMENTED, DONE, answered
from retnet.serve.http.texts import merged

router = APIRouter()


@router.post("/v1/chat/completions", responses=DOCUMENTED)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer; with `session` or `state`, `messages` are the new ones alone."""
    context = context_of(request)
    check(context, body)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs = true", param="top_logprobs")
    form = await asyncio.to_thread(
        grammar_of, context.worker.engine, body.structured_outputs, body.response_format
    )
    exchange = Exchange(request, keeping_of(request, body))
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"

    def ask() -> Asked:
        prompt = prompt_of(context, messages_of(body.messages), exchange.keeping.before)
        max_tokens = answer_tokens(context, getattr(body, field), len(prompt), exchange.keeping)
        settings = common(context, body, exchange.keeping, max_tokens, field)
        settings["stop"] = (*settings["stop"], *context.template.stop)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        asked = engine.Request(prompt=tuple(prompt), logprobs=logprobs, grammar=form, **settings)
        return Asked([asked], "messages")

    await exchange.begin(ask)
    return await answered(request, exchange, ChatAnswer(exchange, body), stream=bool(body.stream))


def messages_of(body_messages: list[Any]) -> list[Message]:
    """Messages as a template takes them."""
    return [message_of(message.role, message.content) for message in body_messages]


def prompt_of(
    context: Context, messages: list[Message], before: Before, field: str = "messages"
) -> list[int]:
    """Tokens of messages that begin a chat or go on with it; `field` has them."""
    try:
        if before.state is None:
            return context.template.begin(messages)
        unread = before.unread(context.tokenizer)
        return [*unread, *context.template.go_on(messages, before.remembered.tail)]
    except ValueError as error:
        raise ApiError(400, str(error), param=field) from error


class ChatAnswer:
    """An answer, or `n`, as OpenAI's clients expect it."""

    done = DONE

    def __init__(self, exchange: Exchange, body: ChatBody) -> None:
        """Answer what an exchange has begun."""
        self._exchange = exchange
        self._texts = exchange.texts
        self._body = body
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        self._head = exchange.head("chatcmpl", kind)

    async def whole(self) -> dict[str, Any]:
        """All at once."""
        choices = []
        for number, pieces in enumerate(await self._texts.complete()):
            piece = merged(pieces)
            message = {"role": "assistant", "content": piece.text, "refusal": None}
            choices.append(self._choice(number, "message", message, piece))
        kept = await self._keep()
        return {**self._head, "choices": choices, "usage": self._exchange.usage(), **kept}

    async def frames(self) -> AsyncIterator[dict[str, Any] | None]:
        """Piece by piece: a role, contents, and how each ends."""
        options = self._body.stream_options
        with_usage = bool(options and options.include_usage)
        more: dict[str, Any] = {"usage": None} if with_usage else {}
        kept: dict[str, Any] = {}
        going = len(self._texts.progress)
        nothing = Piece("", (), None)
        for number in range(going):
            role = {"role": "assistant", "content": ""}
            yield {**self._head, "choices": [self._choice(number, "delta", role, nothing)], **more}
        async for grown in self._texts.grow():
            if grown is None:
                yield None
                continue
            piece = grown.piece
            if piece.text or piece.entries:
                content = {"content": piece.text}
                unended = piece._replace(finish_reason=None)
                choice = self._choice(grown.choice, "delta", content, unended)
                yield {**self._head, "choices": [choice], **more}
            if piece.finish_reason is None:
                continue
            going -= 1
            if going == 0:  # before the client learns of the end, it is kept
                kept = await self._keep()
            choice = self._choice(grown.choice, "delta", {}, piece._replace(entries=()))
            yield {**self._head, "choices": [choice], **more, **kept}
        if with_usage:
            yield {**self._head, "choices": [], "usage": self._exchange.usage()}

    def failed(self, error: ApiError) -> dict[str, Any]:
        """The last frame, if something went wrong on the way."""
        return body_of(error)

    def _choice(
        self, number: int, field: str, content: dict[str, Any], piece: Piece
    ) -> dict[str, Any]:
        told = None
        if self._body.logprobs and (piece.entries or field == "message"):
            told = chat_logprobs(self._exchange.context.tokenizer, piece.entries)
        return {
            "index": number,
            field: content,
            "logprobs": told,
            "finish_reason": piece.finish_reason,
        }

    async def _keep(self) -> dict[str, Any]:
        progress = self._texts.progress[0]  # only one text goes on with a session
        messages = [message._asdict() for message in messages_of(self._body.messages)]
        messages.append({"role": "assistant", "content": progress.text})
        timing = {"tokens": len(progress.tokens), "seconds": round(self._texts.write_s, 4)}
        return await self._exchange.keep({"messages": messages, "timing": timing})
