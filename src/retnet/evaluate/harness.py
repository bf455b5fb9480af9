"""Our models in lm-evaluation-harness (`retnet[eval]`)."""

import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from retnet.data import Tokenizer, TokenStream
from retnet.evaluate.shared_prefix import CALL_TOKENS, Likelihood, Request, score_requests
from retnet.evaluate.text import score_stream
from retnet.model import Decoder, Sampling, generate


class RetNetLM(LM):
    """A checkpoint as the harness wants it.

    Attributes:
        seconds: that log-likelihoods of continuations have taken.

    Tokens are those that its own `HFLM` makes of our folders, and so are the scores; but what
    several requests begin with is read once, and texts of any length are read whole.

    Example:
        >>> from retnet.model import preset
        >>> from lm_eval.api.instance import Instance
        >>> model = Decoder(preset("small-1m", vocab_size=257)).eval()
        >>> lm = RetNetLM(model, Tokenizer.bytes())
        >>> request = Instance("loglikelihood", {}, ("The sky is", " blue"), 0)
        >>> [(log_probability, greedy)] = lm.loglikelihood([request])
        >>> log_probability < 0
        True
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        batch_size: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: in evaluation mode.
            tokenizer: the model's.
            batch_size: most texts at a time.
            progress: called with requests done and in all, of those that score.
        """
        super().__init__()
        self._model, self._tokenizer = model, tokenizer
        self._batch_size, self._progress = batch_size, progress
        self.seconds = 0.0

    @property
    def tokenizer_name(self) -> str:
        """What tells the tokenizer from others."""
        return self._tokenizer.fingerprint

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihood of each (context, continuation), and whether greedy decoding gives it."""
        begin = time.perf_counter()
        encoded = []
        for request in requests:
            context, continuation = cast(Any, request.args)
            before, after = self._encode_pair(context, continuation)
            known = request.doc_id is not None
            group = (request.task_name, request.doc_id) if known else tuple(before)
            encoded.append(self._request(before, after, group))
        found = self._likelihoods(encoded)
        for request, likelihood in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, tuple(likelihood))
        self.seconds += time.perf_counter() - begin
        return [(likelihood.log_probability, likelihood.greedy) for likelihood in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood of each text after BOS, with the state carried through all of it.

        A model that has a limit reads windows as long as it can, half of which it knows.
        """
        totals, short, rows = [0.0] * len(requests), [], []
        for row, request in enumerate(requests):
            tokens = self._tokenizer.encode(request.args[0])
            if self._model.max_tokens is None and 0 < len(tokens) < CALL_TOKENS:
                short.append(self._request([self._tokenizer.bos_id], tokens, row))
                rows.append(row)
            elif tokens:
                totals[row] = self._log_probability(tokens)
        for row, likelihood in zip(rows, self._likelihoods(short), strict=True):
            totals[row] = likelihood.log_probability
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continue each context until one of its strings, or the end of the text."""
        answers = [""] * len(requests)
        wanted: dict[tuple[tuple[str, ...], int, Sampling], list[int]] = {}
        for row, request in enumerate(requests):
            _, settings = cast(Any, request.args)
            wanted.setdefault(_settings(settings), []).append(row)
        for (until, limit, sampling), rows in wanted.items():
            rows.sort(key=lambda row: len(requests[row].args[0]))
            for begin in range(0, len(rows), self._batch_size):
                batch = rows[begin : begin + self._batch_size]
                texts = generate(
                    self._model,
                    self._tokenizer,
                    [requests[row].args[0] for row in batch],
                    max_tokens=limit,
                    sampling=sampling,
                    stop=until,
                )
                for row, [completion] in zip(batch, texts, strict=True):
                    answers[row] = completion.text
                    args = requests[row].args
                    self.cache_hook.add_partial("generate_until", args, completion.text)
        return answers

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens before, from BOS on, and tokens to score: as the harness cuts them.

        Blanks at the end of the context belong to the continuation, and this is what tokens of the
        whole have beyond as many as the context has.
        """
        bare = context.rstrip()
        if bare:
            context, continuation = bare, context[len(bare) :] + continuation
        before = self._tokenizer.encode(context)
        return [self._tokenizer.bos_id, *before], self._tokenizer.encode(context + continuation)[
            len(before) :
        ]

    def _request(self, before: list[int], after: list[int], group: object) -> Request:
        """What is scored, cut on the left to what the model can read."""
        limit = self._model.max_tokens
        tokens = before + after
        if limit is not None:
            tokens = tokens[-limit - 1 :]
        return Request(tokens, min(len(after), len(tokens) - 1), group)

    def _likelihoods(self, requests: list[Request]) -> list[Likelihood]:
        return score_requests(
            self._model, requests, batch_size=self._batch_size, progress=self._progress
        )

    def _log_probability(self, tokens: list[int]) -> float:
        """Of a text that is long, or longer than the model can read."""
        row = np.array([self._tokenizer.bos_id, *tokens])
        stream = TokenStream(row, np.zeros(1, dtype=np.int64), 1, self._tokenizer.bos_id)
        limit = self._model.max_tokens
        stride = None if limit is None else max(limit // 2, 1)
        return -score_stream(self._model, stream, seq_len=limit, stride=stride).nats


def _settings(given: dict) -> tuple[tuple[str, ...], int, Sampling]:
    """Strings that end a text, most tokens, and how to choose them.

    Raises:
        ValueError: a task asks for a way of choosing that there is not.
    """
    asked: dict[str, Any] = dict(normalize_gen_kwargs(given))
    until, limit = tuple(asked.pop("until")), asked.pop("max_gen_toks")
    samples = asked.pop("do_sample", False)
    temperature = float(asked.pop("temperature", 1.0)) if samples else 0.0
    top_k, top_p = int(asked.pop("top_k", 0)), float(asked.pop("top_p", 1.0))
    asked.pop("temperature", None)
    if asked:
        raise ValueError(
            f"the task asks to generate with {sorted(asked)}, which do not exist here; there are "
            "until, max_gen_toks, do_sample, temperature, top_k and top_p"
        )
    return until, limit, Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=0)
