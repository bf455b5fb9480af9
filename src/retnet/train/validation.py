"""Score the model on held-out text on the way, without touching what training depends on."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from retnet.data import (
    Batch,
    Corpus,
    Tokenizer,
    TokenStream,
    eval_windows,
    share_rows,
    stream_segments,
)
from retnet.model import Decoder
from retnet.model.generation import generate
from retnet.model.sampling import Sampling
from retnet.model.scoring import total_nats
from retnet.train.config import RunConfig
from retnet.train.ranks import Ranks

SAMPLING = Sampling(temperature=0.8)
"""A little below 1 hides the unlikely tokens of a young model and keeps its texts apart."""

Wrap = Callable[[Iterable[Batch]], Iterable[Batch]]


def beginning(stream: TokenStream, tokenizer: Tokenizer, num_tokens: int) -> TokenStream:
    """The first tokens of a stream, at least two; all of it for 0 or more than there are."""
    if num_tokens == 0 or num_tokens >= stream.num_tokens:
        return stream
    tokens = stream.tokens[:num_tokens]
    lengths = np.array([len(tokenizer.id_bytes(i)) for i in range(tokenizer.vocab_size)])
    return TokenStream(
        tokens=tokens,
        document_starts=stream.document_starts[stream.document_starts < num_tokens],
        num_bytes=int(lengths[tokens].sum()),
        bos_id=stream.bos_id,
    )


class Validation:
    """What to score, and how: made once a run.

    Attributes:
        stream: the validation text, or its beginning.
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        ranks: Ranks,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.stream = beginning(corpus.valid, corpus.tokenizer, config.train.eval_tokens)
        self._config = config
        self._tokenizer = corpus.tokenizer
        self._ranks = ranks
        self._autocast = autocast

    def score(self, model: Decoder, wrap: Wrap = iter) -> dict[str, float]:
        """Score the text in the run's precision, once in windows and once with the state carried.

        The processes of a run share the rows and add up what they found.

        Args:
            model: its mode is restored.
            wrap: goes around the batches; it may raise, to cut the work short.

        Returns:
            valid_loss and valid_bits_per_byte, from windows of seq_len that start with nothing, as
            in training, and the same with `_carried`, where each row reads whole documents on end,
            or in windows as long as the model can read.
            A loss is in nats per token; bits are those of all tokens over the bytes of the text.
        """
        train, ranks = self._config.train, self._ranks
        rows = max(train.batch_size // train.accumulate // ranks.data_size, 1) * ranks.size
        result: dict[str, float] = {}
        limit = model.max_tokens
        windows = partial(eval_windows, self.stream, batch_size=rows)
        whole = stream_segments(self.stream, seq_len=train.seq_len, batch_size=rows)
        for suffix, batches, carry in (
            ("", windows(seq_len=train.seq_len), False),
            ("_carried", windows(seq_len=limit) if limit else whole, not limit),
        ):
            with self._autocast():
                shares = (self._share(batch) for batch in wrap(batches))
                mine = total_nats(model, shares, carry_state=carry)
            nats, count = ranks.sum(torch.tensor(mine, dtype=torch.float64)).tolist()
            result[f"valid_loss{suffix}"] = nats / count
            result[f"valid_bits_per_byte{suffix}"] = nats / math.log(2) / self.stream.num_bytes
        return result

    def sample(self, model: Decoder) -> str:
        """Continue `sample_prompt`; the prompt is part of the text."""
        config = self._config
        training = model.training
        model.eval()
        try:
            [[completion]] = generate(
                model,
                self._tokenizer,
                [config.train.sample_prompt],
                max_tokens=config.train.sample_tokens,
                sampling=replace(SAMPLING, seed=config.run.seed),
            )
        finally:
            model.train(training)
        return config.train.sample_prompt + completion.text

    def _share(self, batch: Batch) -> Batch:
        mine = share_rows(batch, self._ranks.rank, self._ranks.size)
        return Batch(*(tensor.to(self._ranks.device) for tensor in mine))
