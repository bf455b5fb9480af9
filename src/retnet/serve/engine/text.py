"""The life of one text: how its tokens are chosen, what they say, and when it ends."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.model.reply import FinishReason, Reply, Tokenizer
from retnet.model.sampling import row_generator, sample
from retnet.serve.engine.grammar import Matching
from retnet.serve.engine.request import Handle, Request, TokenLogprob


class Text:
    """One sample of a request.

    Attributes:
        handle: of its request.
        sample: its number.
        request: what was asked for.
        reply: its tokens, as far as they are text.
        unread: the last token that was chosen and that the model has not read yet.
        finish_reason: None while it goes on.
        changes_scores: whether `prepare` does anything.
    """

    def __init__(
        self,
        handle: Handle,
        sample: int,
        request: Request,
        tokenizer: Tokenizer,
        matching: Matching | None,
    ) -> None:
        """Begin an empty text.

        Raises:
            ValueError: see `Reply`.
        """
        self.handle = handle
        self.sample = sample
        self.request = request
        self.reply = Reply(tokenizer, request.max_tokens, request.stop)
        self.unread: int | None = None
        self.finish_reason: FinishReason | None = self.reply.finish_reason
        self._matching = matching
        self._generator = row_generator(request.sampling.seed, sample)
        penalizes = request.sampling.penalizes
        self.changes_scores = bool(request.logit_bias or matching is not None or penalizes)
        self._counts: Tensor | None = None  # of each token in this text, where they matter

    def take(self, token: int) -> str:
        """Go on with a token; return what may be shown of it."""
        known = len(self.reply.tokens)
        piece = self.reply.take(token)
        self.unread = token if len(self.reply.tokens) > known else None
        if self._counts is not None:
            self._counts[token] += 1
        self.finish_reason = self.reply.finish_reason
        if self._matching is not None and self.unread is not None:
            self._matching.take(token)
            if self.finish_reason is None and self._matching.is_complete:
                piece += self.reply.end()
                self.finish_reason = "stop"
        return piece

    def prepare(self, scores: Float[Tensor, " V"]) -> None:
        """Bias and forbid tokens, in place.

        Raises:
            ValueError: the grammar cannot be followed.
        """
        for token, bias in self.request.logit_bias.items():
            scores[token] += bias
        if self._matching is not None:
            allowed = self._matching.allowed().to(scores.device)
            scores[: len(allowed)].masked_fill_(~allowed, -math.inf)
        if self.request.sampling.penalizes and self._counts is None:
            self._counts = torch.zeros(len(scores), dtype=torch.int32, device=scores.device)

    @staticmethod
    def choose(texts: Sequence["Text"], scores: Float[Tensor, "B V"]) -> list[int]:
        """A token for each text, of scores that are prepared.

        Raises:
            ValueError: a row offers no token.
        """
        counts = None
        if any(text._counts is not None for text in texts):
            none = scores.new_zeros(scores.shape[1], dtype=torch.int32)
            counts = torch.stack([none if t._counts is None else t._counts for t in texts])
        settings = [text.request.sampling for text in texts]
        return sample(scores, settings, [text._generator for text in texts], counts).tolist()


def logprob_of(token: int, log_probs: Float[Tensor, " V"], num_top: int) -> TokenLogprob:
    """What to tell of a token."""
    values, ids = log_probs.topk(min(num_top, len(log_probs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(log_probs[token]), top)
