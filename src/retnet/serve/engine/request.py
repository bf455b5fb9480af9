"""What a caller asks of the engine, and what the engine tells in return."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NewType

from retnet.model import DecoderState, Sampling
from retnet.model.reply import FinishReason
from retnet.model.sampling import PLAIN
from retnet.serve.engine.grammar import Grammar

Handle = NewType("Handle", int)
"""Names a request in the engine that took it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Some tokens to read, and how to go on from them.

    Attributes:
        prompt: tokens to read, at least one; those of a text's beginning start with BOS.
        state: one row: what came before. It is not modified.
        sampling: how to choose tokens.
        max_tokens: to generate at most; 0 only reads the prompt.
        stop: strings that end a text, which will not contain them.
        num_samples: texts from one reading of the prompt. Sample i depends on the request and
            (seed, i) alone.
        logprobs: alternatives to tell of with each token, 0 for the token's own logarithm alone;
            None for neither. They are of the model's own distribution, before any setting.
        echo: whether to tell those of the prompt's tokens, too.
        logit_bias: added to the logits of tokens, before all else.
        grammar: what every text must match.
        keep_state: whether the end of each text carries the state after its last token.
        marks: numbers of prompt tokens after which others may begin alike, such as a system
            prompt's: the prefix cache then keeps the state there.
    """

    prompt: tuple[int, ...]
    state: DecoderState | None = None
    sampling: Sampling = PLAIN
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    num_samples: int = 1
    logprobs: int | None = None
    echo: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    grammar: Grammar | None = None
    keep_state: bool = False
    marks: tuple[int, ...] = ()


class TokenLogprob(NamedTuple):
    """How likely a token was.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability.
        top: the likeliest tokens and theirs, in falling order.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Usage(NamedTuple):
    """Tokens of one text.

    Attributes:
        prompt_tokens: of the request.
        cached_tokens: of these, how many were not read because the prefix cache had the state.
        completion_tokens: generated, those of a stop string included, without an end token.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True)
class PromptEvent:
    """The prompt has been read; only told where `echo` asks for it.

    Attributes:
        handle: of the request.
        logprobs: of each token; None for the first, which nothing predicts.
    """

    handle: Handle
    logprobs: tuple[TokenLogprob | None, ...]


@dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """A token was generated.

    Attributes:
        handle: of the request.
        sample: which of its texts.
        text: what may now be shown: whole characters, nothing that may become a stop string.
        token: its id; not told of a token that ends the text.
        logprob: where the request asks for it.
    """

    handle: Handle
    sample: int
    text: str
    token: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, kw_only=True)
class FinishEvent:
    """A text has ended; the last event of its sample.

    Attributes:
        handle: of the request.
        sample: which of its texts.
        text: what was still withheld.
        finish_reason: `stop` also where a grammar is complete.
        usage: tokens read and generated.
        state: after the prompt and all tokens told of, a row of its own, where `keep_state` asks.
    """

    handle: Handle
    sample: int
    text: str
    finish_reason: FinishReason
    usage: Usage
    state: DecoderState | None = None


@dataclass(frozen=True, kw_only=True)
class ErrorEvent:
    """A text cannot go on; the last event of its sample.

    Attributes:
        handle: of the request.
        sample: which of its texts.
        message: why.
    """

    handle: Handle
    sample: int
    message: str


Event = PromptEvent | TokenEvent | FinishEvent | ErrorEvent
