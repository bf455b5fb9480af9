"""`/v1/completions`: texts that continue prompts."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from time import time
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import Response

from retnet.serve import engine
from retnet.serve.http.asks import common, grammar_of
from retnet.serve.http.context import Context, context_of, owner_of
from retnet.serve.http.continuing import Continuing
from retnet.serve.http.errors import ApiError
from retnet.serve.http.pieces import Piece, Progress, completion_logprobs
from retnet.serve.http.schemas import CompletionBody
from retnet.serve.http.streaming import DOCUMENTED, answered
from retnet.serve.http.texts import Texts, merged, new_id

router = APIRouter()

DEFAULT_TOKENS = 16
"""Of a completion whose request does not say, as OpenAI has it."""


class Prompt(NamedTuple):
    """What is to be continued."""

    tokens: tuple[int, ...]
    text: str


@router.post("/v1/completions", responses=DOCUMENTED)
async def completions(body: CompletionBody, request: Request) -> Response:
    """Continue one prompt or several, `n` times each."""
    context = context_of(request)
    max_tokens = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    settings = common(context, body, max_tokens)
    if body.best_of not in (None, settings["num_samples"]):
        raise ApiError(400, "best_of must be n: every text is shown", param="best_of")
    form = await asyncio.to_thread(grammar_of, context.worker.engine, body.structured_outputs)
    session = None
    if body.session is not None:
        session = Continuing(context, owner_of(request), body.session)
    started = False
    try:
        if session is not None:
            await session.open()
        before = None if session is None else session.stored
        prompts = await asyncio.to_thread(_prompts, context, body, before is None)
        asked = [
            engine.Request(
                prompt=prompt.tokens,
                state=None if before is None else before.state,
                logprobs=body.logprobs,
                echo=bool(body.echo),
                grammar=form,
                keep_state=session is not None,
                **settings,
            )
            for prompt in prompts
        ]
        begins = [len(prompt.text) if body.echo else 0 for prompt in prompts]
        texts = Texts(context, asked, "prompt", begins)
        started = True
    finally:
        if session is not None and not started:
            session.release()

    answer = _Answer(context, body, texts, prompts, session, request.scope["noted"])

    return await answered(request, answer, texts.run, session, stream=bool(body.stream))


def _prompts(context: Context, body: CompletionBody, begins: bool) -> list[Prompt]:
    given: Any = body.prompt
    most = context.limits.prompts
    several: Sequence[Any] = given if _is_several(given) else [given]
    if not 1 <= len(several) <= most:
        raise ApiError(
            400, f"prompt has {len(several)} texts; give 1 to {most} at once", param="prompt"
        )
    if body.session is not None and len(several) > 1:
        raise ApiError(400, "a session goes on with one text: give one", param="prompt")
    tokenizer, prompts = context.tokenizer, []
    for number, one in enumerate(several):
        try:
            tokens = (
                [tokenizer.bos_id] * begins + tokenizer.encode(one) if isinstance(one, str) else one
            )
            data = b"".join(map(tokenizer.id_bytes, tokens))
        except ValueError as error:
            raise ApiError(400, str(error), param=f"prompt[{number}]") from error
        prompts.append(Prompt(tuple(tokens), data.decode(errors="replace")))
    return prompts


def _is_several(prompt: Any) -> bool:
    return isinstance(prompt, list) and (not prompt or not isinstance(prompt[0], int))


class _Answer:
    """Texts as OpenAI's clients expect them."""

    def __init__(
        self,
        context: Context,
        body: CompletionBody,
        texts: Texts,
        prompts: Sequence[Prompt],
        session: Continuing | None,
        noted: dict[str, Any],
    ) -> None:
        self._context = context
        self._body = body
        self._texts = texts
        self._prompts = prompts
        self._session = session
        self._noted = noted
        self._head = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time()),
            "model": context.model,
        }

    async def whole(self) -> dict[str, Any]:
        """All at once."""
        pieces = await self._texts.complete()
        n = len(pieces) // len(self._prompts)
        choices = [self._choice(i, merged(own), i // n) for i, own in enumerate(pieces)]
        return {**self._head, "choices": choices, **await self._ended()}

    async def frames(self) -> AsyncIterator[dict[str, Any] | None]:
        """Piece by piece."""
        options = self._body.stream_options
        with_usage = bool(options and options.include_usage)
        more: dict[str, Any] = {"usage": None} if with_usage else {}
        begun: set[int] = set()
        last: dict[str, Any] = {}
        going = len(self._texts.progress)
        async for grown in self._texts.grow():
            if grown is None:
                yield None
                continue
            piece = grown.piece
            going -= piece.finish_reason is not None
            if going == 0:  # before the client learns of the end, it is kept
                last = await self._ended()
            told = piece.text or piece.entries or piece.finish_reason
            if told or (self._body.echo and grown.choice not in begun):
                echo = None if grown.choice in begun else grown.prompt
                begun.add(grown.choice)
                choice = self._choice(grown.choice, piece, echo)
                extra = {"session": last["session"]} if "session" in last else {}
                yield {**self._head, "choices": [choice], **more, **extra}
        if with_usage:
            yield {**self._head, "choices": [], "usage": last["usage"]}

    def _choice(self, number: int, piece: Piece, echo: int | None) -> dict[str, Any]:
        """Of a text or a piece; `echo` is the prompt to show before it, where that is asked for."""
        text, entries = piece.text, piece.entries
        if self._body.echo and echo is not None:
            prompt = self._prompts[echo]
            text = prompt.text + text
            if self._body.logprobs is not None:
                place = Progress(self._context.tokenizer)
                told = self._texts.prompt_logprobs[echo]
                pairs = zip(prompt.tokens, told, strict=True)
                entries = (*(place.entry(token, one) for token, one in pairs), *entries)
        logprobs = None
        if self._body.logprobs is not None:
            logprobs = completion_logprobs(self._context.tokenizer, entries)
        return {
            "text": text,
            "index": number,
            "logprobs": logprobs,
            "finish_reason": piece.finish_reason,
        }

    async def _ended(self) -> dict[str, Any]:
        before = 0 if self._session is None else self._session.num_tokens
        usage = self._texts.usage(before)
        self._noted.update(usage)
        if self._session is None:
            return {"usage": usage}
        (prompt,), (progress,) = self._prompts, self._texts.progress
        kept = await self._session.commit(prompt.tokens, progress, {})
        return {"usage": usage, "session": kept}
