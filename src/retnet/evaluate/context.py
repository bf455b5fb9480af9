"""Does more context help? The same last tokens, predicted from more and more of what stands before.

A model that uses all it has read gets better, one that sees a window stays as it is, and one that
cannot read texts longer than in its training breaks.

Source: Sun et al. 2023, arXiv:2307.08621, table 8 (the last 128 of 2048 tokens from 512, 1024 and
2048); the verdicts follow Su 2024, kexue.fm/archives/9948.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from retnet.data import TokenStream
from retnet.evaluate.losses import Interval, mean_interval, token_nats
from retnet.evaluate.reading import CALL_TOKENS
from retnet.evaluate.text import Progress
from retnet.model import Decoder

CONTEXTS = (512, 1024, 2048)
SEGMENT = 128
SAME_NATS = 0.005
"""Differences below it are none, whatever their sign: half a percent of perplexity."""

Verdict = Literal["improves", "flat", "breaks"]


@dataclass(frozen=True, kw_only=True)
class ContextGrowth:
    """Losses of the same tokens at several lengths of context.

    Attributes:
        contexts: tokens that the model read, the scored ones and a BOS in front included; rising.
        nats: mean loss at each.
        gains: how the mean loss at each differs from that at the shortest; 0 to 0 there.
        after_best: how that at the longest differs from the best of all shorter ones.
        segment: tokens scored in each sample.
        samples: places in the text.
        verdict: see `verdict_of`.
    """

    contexts: tuple[int, ...]
    nats: tuple[float, ...]
    gains: tuple[Interval, ...]
    after_best: Interval
    segment: int
    samples: int
    verdict: Verdict


def score_contexts(
    model: Decoder,
    stream: TokenStream,
    *,
    contexts: Sequence[int] = CONTEXTS,
    segment: int = SEGMENT,
    most_samples: int = 64,
    progress: Progress | None = None,
) -> ContextGrowth:
    """Score the ends of samples of the longest context, each from all contexts.

    Samples lie evenly over all places at which a document has as many tokens; they do not overlap.

    Args:
        model: scored in evaluation mode; its mode is restored.
        stream: documents, some of which are as long as the longest context.
        contexts: see `ContextGrowth`.
        segment: see there.
        most_samples: fewer are taken where the text has no more.
        progress: called with tokens read so far and in all.

    Raises:
        ValueError: contexts do not rise, segment is not shorter than the shortest, the model cannot
            read the longest, or the text has fewer than two samples.
    """
    if len(contexts) < 2 or any(a >= b for a, b in pairwise(contexts)):
        raise ValueError(f"contexts ({tuple(contexts)}) must be two or more that rise")
    if not 1 <= segment < contexts[0]:
        raise ValueError(
            f"segment ({segment}) must be from 1 to {contexts[0] - 1}, below the shortest context"
        )
    if model.max_tokens is not None and contexts[-1] > model.max_tokens:
        raise ValueError(
            f"the longest context ({contexts[-1]}) is more than the model can read "
            f"({model.max_tokens} tokens); leave it out"
        )
    rows = _samples(stream, contexts[-1], most_samples)
    total, done = len(rows) * sum(contexts), 0
    losses = []
    training = model.training
    model.eval()
    try:
        for context in contexts:
            found = []
            for part in rows.split(max(1, CALL_TOKENS // context)):
                if progress is not None:
                    progress(done, total)
                found.append(_tail_nats(model, part, context, segment, stream.bos_id))
                done += len(part) * context
            losses.append(torch.cat(found))
    finally:
        model.train(training)
    if progress is not None:
        progress(done, total)
    table = torch.stack(losses).double().cpu()  # contexts samples
    gains = tuple(mean_interval((row - table[0]).tolist()) for row in table)
    best = table[:-1].mean(1).argmin()
    after_best = mean_interval((table[-1] - table[best]).tolist())
    return ContextGrowth(
        contexts=tuple(contexts),
        nats=tuple(table.mean(1).tolist()),
        gains=gains,
        after_best=after_best,
        segment=segment,
        samples=len(rows),
        verdict=verdict_of(gains[-1], after_best),
    )


def verdict_of(gain: Interval, after_best: Interval) -> Verdict:
    """In a word: does the longest context break, improve, or neither?

    Args:
        gain: the loss at the longest context less that at the shortest.
        after_best: the same less that at the best of the shorter ones.

    Example:
        >>> verdict_of(Interval(-0.2, -0.3, -0.1), Interval(-0.05, -0.1, 0.0))
        'improves'
        >>> verdict_of(Interval(-0.2, -0.3, -0.1), Interval(0.4, 0.3, 0.5))
        'breaks'
        >>> verdict_of(Interval(0.0, -0.1, 0.1), Interval(0.0, -0.1, 0.1))
        'flat'
    """
    if after_best.low > 0 and after_best.mean > SAME_NATS:
        return "breaks"
    return "improves" if gain.high < 0 and gain.mean < -SAME_NATS else "flat"


def _samples(stream: TokenStream, longest: int, most: int) -> Int[Tensor, "samples longest"]:
    """Runs of `longest` tokens of one document each, whose last token is only a target."""
    starts = np.asarray(stream.document_starts)
    lengths = np.diff(np.append(starts, stream.num_tokens))
    begins = [
        start + offset
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
        for offset in range(0, length - longest, longest)
    ]
    if len(begins) < 2:
        raise ValueError(
            f"the text has {len(begins)} samples of {longest + 1} tokens of one document, and "
            "there must be at least 2; give longer documents, or shorter contexts"
        )
    chosen = np.unique(np.linspace(0, len(begins) - 1, min(most, len(begins))).round().astype(int))
    places = np.array(begins)[chosen, None] + np.arange(longest + 1)
    return torch.from_numpy(stream.tokens[places].astype(np.int64))


@torch.inference_mode()
def _tail_nats(
    model: Decoder, rows: Int[Tensor, "B L"], context: int, segment: int, bos_id: int
) -> Float[Tensor, " B"]:
    """Mean loss of the last tokens of each row, after a BOS and `context - 1` tokens."""
    device = next(model.parameters()).device
    inputs, targets = rows[:, -context - 1 : -1].clone(), rows[:, -segment:]
    inputs[:, 0] = bos_id  # as any text begins
    hidden, _ = model.hidden(inputs.to(device))
    tail = hidden[:, -segment:].flatten(0, 1)
    return token_nats(model, tail, targets.to(device).flatten()).view(len(rows), -1).mean(1)
