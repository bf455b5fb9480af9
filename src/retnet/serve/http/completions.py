"""`/v1/completions`: texts that continue prompts."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import Response

from retnet.serve import engine
from retnet.serve.http.asks import check, common, grammar_of, keeping_of
from retnet.serve.http.context import Context, context_of
from retnet.serve.http.errors import ApiError, body_of
from retnet.serve.http.exchange import Asked, Exchange
from retnet.serve.http.keeping import Keeping
from retnet.serve.http.pieces import Piece, Progress, completion_logprobs
from retnet.serve.http.schemas import CompletionBody
from retnet.serve.http.streaming import DOCUMENTED, DONE, answered
from retnet.serve.http.texts import merged

router = APIRouter()

DEFAULT_TOKENS = 16
"""Of a completion whose request does not say, as OpenAI has it."""


class Prompt(NamedTuple):
    """What is to be continued."""

    tokens: tuple[int, ...]
    text: str


@router.post("/v1/completions", responses=DOCUMENTED)
async def completions(body: CompletionBody, request: Request) -> Response:
    """Continue one prompt or several, `n` times each, or what a `session` or `state` has read."""
    context = context_of(request)
    check(context, body)
    if body.best_of not in (None, body.n or 1):
        raise ApiError(400, "best_of must be n: every text is shown", param="best_of")
    form = await asyncio.to_thread(grammar_of, context.worker.engine, body.structured_outputs)
    max_tokens = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    exchange = Exchange(request, keeping_of(request, body))
    prompts: list[Prompt] = []

    def ask() -> Asked:
        prompts.extend(_prompts(context, body, exchange.keeping))
        settings = common(context, body, exchange.keeping, max_tokens)
        settings |= {"logprobs": body.logprobs, "echo": bool(body.echo), "grammar": form}
        asked = [engine.Request(prompt=prompt.tokens, **settings) for prompt in prompts]
        begins = [len(prompt.text) if body.echo else 0 for prompt in prompts]
        return Asked(asked, "prompt", begins)

    await exchange.begin(ask)
    answer = CompletionAnswer(exchange, body, prompts)
    return await answered(request, exchange, answer, stream=bool(body.stream))


def _prompts(context: Context, body: CompletionBody, keeping: Keeping) -> list[Prompt]:
    given: Any = body.prompt
    most = min(context.limits.prompts, context.worker.engine.config.queue_size)
    several: Sequence[Any] = given if _is_several(given) else [given]
    if not 1 <= len(several) <= most:
        raise ApiError(
            400, f"prompt has {len(several)} texts; give 1 to {most} at once", param="prompt"
        )
    if keeping.keeps and len(several) > 1:
        raise ApiError(400, "the state of one text is kept: give one", param="prompt")
    tokenizer, before, prompts = context.tokenizer, keeping.before, []
    bos = [tokenizer.bos_id] if before.state is None else []
    for number, one in enumerate(several):
        try:
            if isinstance(one, str):
                tokens = [*bos, *before.unread(tokenizer, one)]
            else:
                tokens = [*before.unread(tokenizer), *one]
            data = b"".join(map(tokenizer.id_bytes, tokens))
        except ValueError as error:
            raise ApiError(400, str(error), param=f"prompt[{number}]") from error
        prompts.append(Prompt(tuple(tokens), data.decode(errors="replace")))
    return prompts


def _is_several(prompt: Any) -> bool:
    return isinstance(prompt, list) and (not prompt or not isinstance(prompt[0], int))


class CompletionAnswer:
    """Texts as OpenAI's clients expect them."""

    done = DONE

    def __init__(self, exchange: Exchange, body: CompletionBody, prompts: Sequence[Prompt]) -> None:
        """Answer what an exchange has begun."""
        self._exchange = exchange
        self._texts = exchange.texts
        self._body = body
        self._prompts = prompts
        self._head = exchange.head("cmpl", "text_completion")

    async def whole(self) -> dict[str, Any]:
        """All at once."""
        pieces = await self._texts.complete()
        n = len(pieces) // len(self._prompts)
        choices = [self._choice(i, merged(own), i // n) for i, own in enumerate(pieces)]
        kept = await self._exchange.keep({})
        return {**self._head, "choices": choices, "usage": self._exchange.usage(), **kept}

    async def frames(self) -> AsyncIterator[dict[str, Any] | None]:
        """Piece by piece."""
        options = self._body.stream_options
        with_usage = bool(options and options.include_usage)
        more: dict[str, Any] = {"usage": None} if with_usage else {}
        begun: set[int] = set()
        kept: dict[str, Any] = {}
        going = len(self._texts.progress)
        async for grown in self._texts.grow():
            if grown is None:
                yield None
                continue
            piece = grown.piece
            going -= piece.finish_reason is not None
            if going == 0:  # before the client learns of the end, it is kept
                kept = await self._exchange.keep({})
            told = piece.text or piece.entries or piece.finish_reason
            if told or (self._body.echo and grown.choice not in begun):
                echo = None if grown.choice in begun else grown.prompt
                begun.add(grown.choice)
                choice = self._choice(grown.choice, piece, echo)
                yield {**self._head, "choices": [choice], **more, **kept}
        if with_usage:
            yield {**self._head, "choices": [], "usage": self._exchange.usage()}

    def failed(self, error: ApiError) -> dict[str, Any]:
        """The last frame, if something went wrong on the way."""
        return body_of(error)

    def _choice(self, number: int, piece: Piece, echo: int | None) -> dict[str, Any]:
        """Of a text or a piece; `echo` is the prompt to show before it, where that is asked for."""
        text, entries = piece.text, piece.entries
        if self._body.echo and echo is not None:
            prompt = self._prompts[echo]
            text = prompt.text + text
            if self._body.logprobs is not None:
                place = Progress(self._exchange.context.tokenizer)
                told = self._texts.prompt_logprobs[echo]
                pairs = zip(prompt.tokens, told, strict=True)
                entries = (*(place.entry(token, one) for token, one in pairs), *entries)
        logprobs = None
        if self._body.logprobs is not None:
            logprobs = completion_logprobs(self._exchange.context.tokenizer, entries)
        return {
            "text": text,
            "index": number,
            "logprobs": logprobs,
            "finish_reason": piece.finish_reason,
        }
