"""`/v1/chat/completions`: answers in a chat."""

import asyncio
from collections.abc import AsyncIterator
from time import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from retnet.serve import engine
from retnet.serve.http.asks import common, grammar_of
from retnet.serve.http.chat_template import Message, message_of
from retnet.serve.http.context import Context, context_of, owner_of
from retnet.serve.http.continuing import Continuing
from retnet.serve.http.errors import ApiError
from retnet.serve.http.pieces import Piece, chat_logprobs
from retnet.serve.http.schemas import ChatBody
from retnet.serve.http.streaming import DOCUMENTED, answered
from retnet.serve.http.texts import Texts, merged, new_id

router = APIRouter()


@router.post("/v1/chat/completions", responses=DOCUMENTED)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer; with `session`, `messages` are the new ones alone."""
    context = context_of(request)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs = true", param="top_logprobs")
    form = await asyncio.to_thread(
        grammar_of, context.worker.engine, body.structured_outputs, body.response_format
    )
    session = None
    if body.session is not None:
        session = Continuing(context, owner_of(request), body.session)
    started = False
    try:
        if session is not None:
            await session.open()
        before = None if session is None else session.stored
        prompt = await asyncio.to_thread(_prompt, context, body, session)
        settings = common(context, body, _max_tokens(context, body, len(prompt), session))
        settings["stop"] = (*settings["stop"], *context.template.stop)
        asked = engine.Request(
            prompt=tuple(prompt),
            state=None if before is None else before.state,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            grammar=form,
            keep_state=session is not None,
            **settings,
        )
        texts = Texts(context, [asked], "messages")
        started = True
    finally:
        if session is not None and not started:
            session.release()

    answer = _Answer(context, body, texts, asked.prompt, session, request.scope["noted"])

    return await answered(request, answer, texts.run, session, stream=bool(body.stream))


def messages_of(body_messages: list[Any]) -> list[Message]:
    """Messages as a template takes them."""
    return [message_of(message.role, message.content) for message in body_messages]


def _prompt(context: Context, body: ChatBody, session: Continuing | None) -> list[int]:
    messages = messages_of(body.messages)
    before = None if session is None else session.stored
    try:
        if before is None:
            return context.template.begin(messages)
        return context.template.go_on(messages, before.meta.get("tail", ""))
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from error


def _max_tokens(context: Context, body: ChatBody, prompt: int, session: Continuing | None) -> int:
    for asked in (body.max_completion_tokens, body.max_tokens):
        if asked is not None:
            return asked
    most, context_tokens = context.limits.chat_tokens, context.worker.engine.max_context
    most = min(most, context.limits.max_tokens)
    if context_tokens is None:
        return most
    used = prompt + (0 if session is None else session.num_tokens)
    return max(1, min(most, context_tokens - used))


class _Answer:
    """An answer, or `n`, as OpenAI's clients expect it."""

    def __init__(
        self,
        context: Context,
        body: ChatBody,
        texts: Texts,
        prompt: tuple[int, ...],
        session: Continuing | None,
        noted: dict[str, Any],
    ) -> None:
        self._context = context
        self._body = body
        self._texts = texts
        self._prompt = prompt
        self._session = session
        self._noted = noted
        self._head = {
            "id": new_id("chatcmpl"),
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time()),
            "model": context.model,
        }

    async def whole(self) -> dict[str, Any]:
        """All at once."""
        choices = []
        for number, pieces in enumerate(await self._texts.complete()):
            piece = merged(pieces)
            message = {"role": "assistant", "content": piece.text, "refusal": None}
            choices.append(self._choice(number, "message", message, piece))
        return {**self._head, "choices": choices, **await self._ended()}

    async def frames(self) -> AsyncIterator[dict[str, Any] | None]:
        """Piece by piece: a role, contents, and how each ends."""
        options = self._body.stream_options
        with_usage = bool(options and options.include_usage)
        more: dict[str, Any] = {"usage": None} if with_usage else {}
        last: dict[str, Any] = {}
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
                last = await self._ended()
            extra = {"session": last["session"]} if "session" in last else {}
            choice = self._choice(grown.choice, "delta", {}, piece._replace(entries=()))
            yield {**self._head, "choices": [choice], **more, **extra}
        if with_usage:
            yield {**self._head, "choices": [], "usage": last["usage"]}

    def _choice(
        self, number: int, field: str, content: dict[str, Any], piece: Piece
    ) -> dict[str, Any]:
        told = None
        if self._body.logprobs and (piece.entries or field == "message"):
            told = chat_logprobs(self._context.tokenizer, piece.entries)
        return {
            "index": number,
            field: content,
            "logprobs": told,
            "finish_reason": piece.finish_reason,
        }

    async def _ended(self) -> dict[str, Any]:
        before = 0 if self._session is None else self._session.num_tokens
        usage = self._texts.usage(before)
        self._noted.update(usage)
        if self._session is None:
            return {"usage": usage}
        (progress,) = self._texts.progress
        messages = [message._asdict() for message in messages_of(self._body.messages)]
        messages.append({"role": "assistant", "content": progress.text})
        kept = await self._session.commit(self._prompt, progress, {"messages": messages})
        return {"usage": usage, "session": kept}
