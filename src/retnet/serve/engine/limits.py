"""What a request may ask for."""

import math
from typing import NamedTuple

from retnet.model import Decoder
from retnet.serve.engine.pool import RowSize
from retnet.serve.engine.request import Request

GROWING_CONTEXT = 4096
"""Tokens of a text at most where states grow with it and nobody says otherwise."""
MOST_LOGPROBS = 20


class Limits(NamedTuple):
    """What an engine can serve.

    Attributes:
        vocab_size: of the tokenizer.
        max_samples: texts that run at once.
        max_context: tokens of a text; None where there is no limit.
        row: what states look like.
    """

    vocab_size: int
    max_samples: int
    max_context: int | None
    row: RowSize

    def check(self, request: Request) -> None:
        """Refuse what cannot be served.

        Raises:
            ValueError: a field's value, the rule and the remedy.
        """
        size = self.vocab_size
        if not request.prompt:
            raise ValueError(
                "prompt has no token to predict from; give at least one: BOS begins a text"
            )
        for name, tokens in (("prompt", request.prompt), ("logit_bias", request.logit_bias)):
            wrong = next((token for token in tokens if not 0 <= token < size), None)
            if wrong is not None:
                raise ValueError(f"{name} has token {wrong}; ids are from 0 to {size - 1}")
        for token, bias in request.logit_bias.items():
            if not math.isfinite(bias):
                raise ValueError(f"logit_bias of token {token} ({bias}) must be finite")
        if not 1 <= request.num_samples <= self.max_samples:
            raise ValueError(
                f"num_samples ({request.num_samples}) must be from 1 to {self.max_samples}, "
                "the texts that run at once (max_running)"
            )
        if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
            raise ValueError(f"logprobs ({request.logprobs}) must be from 0 to {MOST_LOGPROBS}")
        if request.state is not None:
            self.row.check(request.state)
        self._check_length(request)

    def _check_length(self, request: Request) -> None:
        if self.max_context is None:
            return
        before = 0 if request.state is None else int(request.state.position[0])
        total = before + len(request.prompt) + request.max_tokens
        if total > self.max_context:
            raise ValueError(
                f"{before} tokens before, {len(request.prompt)} of the prompt and max_tokens "
                f"({request.max_tokens}) are {total}; this model's states grow with every token, "
                f"and a text may have {self.max_context} (max_context): shorten one of them"
            )


def max_context(model: Decoder, wanted: int | None, size: RowSize) -> int | None:
    """Tokens that a text may have: what is wanted, what the mixers can read, or no limit.

    Raises:
        ValueError: more is wanted than they can read.
    """
    able = model.max_tokens
    if wanted is not None:
        if able is not None and wanted > able:
            raise ValueError(
                f"max_context ({wanted}) must be at most {able}, the tokens that this model's "
                "mixers can read"
            )
        return wanted
    if not size.growing:
        return able
    return GROWING_CONTEXT if able is None else min(able, GROWING_CONTEXT)
