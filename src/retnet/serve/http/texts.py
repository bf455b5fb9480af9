"""The texts that one HTTP request is answered with."""

import secrets
from collections.abc import AsyncIterator, Sequence
from time import perf_counter
from typing import Any, NamedTuple

from retnet.serve.engine import ErrorEvent, PromptEvent, Request, TokenEvent, TokenLogprob
from retnet.serve.http.asks import refused
from retnet.serve.http.context import Context
from retnet.serve.http.errors import ApiError
from retnet.serve.http.pieces import Piece, Progress


class Grown(NamedTuple):
    """What has become of a text: `prompt` counts prompts, `choice` their samples one by one."""

    prompt: int
    choice: int
    piece: Piece


class Texts:
    """Requests in the engine, and their texts as they grow.

    Attributes:
        run: see `Worker.submit`.
        prompt_logprobs: of each prompt's tokens, where they are asked for, once they are known.
        progress: of each choice.
        write_s: from the first token of any to the last of all, so far.
    """

    def __init__(
        self,
        context: Context,
        requests: Sequence[Request],
        prompt_field: str,
        begins: Sequence[int] = (),
    ) -> None:
        """Submit.

        Args:
            context: the server's parts.
            requests: with equal numbers of samples.
            prompt_field: what the client calls the prompt.
            begins: characters before each text; none where it is empty.

        Raises:
            ApiError: the engine refuses a request, or has failed.
            QueueFull: they cannot wait either.
        """
        if not context.worker.alive:
            raise ApiError(
                503, "the engine has failed; the server must be restarted", code="engine_failed"
            )
        try:
            self.run = context.worker.submit(requests)
        except ValueError as error:
            raise refused(error, prompt_field) from error
        self.prompt_logprobs: dict[int, tuple[TokenLogprob | None, ...]] = {}
        self._context = context
        self._requests = requests
        self._begin_s = perf_counter()
        self.write_s = 0.0
        self._n = requests[0].num_samples
        self.progress = [
            Progress(context.tokenizer, begins[i] if begins else 0)
            for i in range(len(requests))
            for _ in range(self._n)
        ]

    async def grow(self) -> AsyncIterator[Grown | None]:
        """What becomes of them; None now and then while nothing does.

        Raises:
            ApiError: a text has failed.
        """
        metrics, first_s = self._context.metrics, None
        async for told in self.run.events(self._context.limits.ping_s):
            if told is None:
                yield None
                continue
            index, event = told
            if isinstance(event, ErrorEvent):
                raise self._failure(self._requests[index], event.message)
            if isinstance(event, PromptEvent):
                self.prompt_logprobs[index] = event.logprobs
                continue
            now = perf_counter()
            if first_s is None:
                first_s = now
                metrics.first_token_s.observe(first_s - self._begin_s)
            if isinstance(event, TokenEvent):  # the end comes a step later
                self.write_s = now - first_s
            choice = index * self._n + event.sample
            yield Grown(index, choice, self.progress[choice].take(event))
        metrics.request_s.observe(perf_counter() - self._begin_s)

    async def complete(self) -> list[list[Piece]]:
        """Wait for all; return each choice's pieces."""
        pieces: list[list[Piece]] = [[] for _ in self.progress]
        async for grown in self.grow():
            if grown is not None:
                pieces[grown.choice].append(grown.piece)
        return pieces

    def usage(self, before: int = 0) -> dict[str, Any]:
        """Tokens of all; `before` each were read in former requests, and cost nothing in this."""
        used = [progress.usage for progress in self.progress]
        prompts = [usage for usage in used[:: self._n] if usage is not None]
        before *= len(self._requests)
        read = before + sum(usage.prompt_tokens for usage in prompts)
        written = sum(usage.completion_tokens for usage in used if usage is not None)
        cached = before + sum(usage.cached_tokens for usage in prompts)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _failure(self, request: Request, message: str) -> ApiError:
        if not self._context.worker.alive:
            return ApiError(503, message, code="engine_failed")
        if self._context.draining:
            return ApiError(503, message, code="shutting_down")
        if request.grammar is not None or request.logit_bias:
            return ApiError(400, message, code="no_token_left")
        return ApiError(500, message, code="engine_error")


def new_id(prefix: str) -> str:
    """A name for an answer."""
    return f"{prefix}-{secrets.token_hex(14)}"


def merged(pieces: Sequence[Piece]) -> Piece:
    """All of a text."""
    entries = tuple(entry for piece in pieces for entry in piece.entries)
    return Piece("".join(piece.text for piece in pieces), entries, pieces[-1].finish_reason)
