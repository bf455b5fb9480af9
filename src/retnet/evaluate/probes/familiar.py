"""Losses of tokens by whether they stood in the text before: what a memory is good for in text.

A token that is new must be guessed from the weights; one that came before, and above all one that
came after the same token as now, can be looked up. Two models with equal losses of the former and
unequal ones of the latter differ in memory.

Source: Arora et al. 2023, arXiv:2312.04927, section 3 (their "associative recall hits" are the
pairs here, without those that are frequent in the training text).
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from retnet.data import TokenStream
from retnet.evaluate.losses import token_nats
from retnet.evaluate.probes.in_text import passages, tokens_before
from retnet.evaluate.reading import CALL_TOKENS
from retnet.model import Decoder

Kind = Literal["new", "seen", "pair"]


@dataclass(frozen=True, kw_only=True)
class FamiliarScore:
    """The loss of tokens of one kind.

    Attributes:
        kind: `new`: the passage did not have the token before; `seen`: it did, but not after the
            token that stands before it now; `pair`: after that token.
        length: tokens of a passage.
        share: of all tokens.
        nats: mean loss.
        standard_error: of that mean, by passages.
        samples: passages.
    """

    kind: Kind
    length: int
    share: float
    nats: float
    standard_error: float
    samples: int


@torch.inference_mode()
def score_familiar(
    model: Decoder, stream: TokenStream, *, length: int, most_samples: int = 64
) -> list[FamiliarScore]:
    """Score passages, and sort their tokens by kind; a kind without tokens is left out.

    Args:
        model: in evaluation mode.
        stream: documents with passages of that length.
        length: tokens of a passage, predicted from a BOS on.
        most_samples: passages, evenly over the text.

    Raises:
        ValueError: the text has fewer than two passages.
    """
    rows = passages(stream, length, most_samples)
    device = next(model.parameters()).device
    losses = []
    for part in rows.split(max(1, CALL_TOKENS // length)):
        hidden, _ = model.hidden(tokens_before(part, stream.bos_id).to(device))
        nats = token_nats(model, hidden.flatten(0, 1), part.flatten().to(device))
        losses.append(nats.view(part.shape).double().cpu())
    table = torch.cat(losses)
    return [
        _score(kind, table, mask) for kind, mask in kinds(rows, stream.bos_id).items() if mask.any()
    ]


def kinds(
    rows: Int64[Tensor, "samples length"], bos_id: int
) -> dict[Kind, Bool[Tensor, "samples length"]]:
    """Which tokens are of each kind.

    Example:
        >>> [[*map(int, mask[0])] for mask in kinds(torch.tensor([[5, 6, 5, 5, 6]]), 0).values()]
        [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    """
    seen = _came_before(rows)
    pair = _came_before(tokens_before(rows, bos_id) * (int(rows.max()) + 1) + rows)
    return {"new": ~seen, "seen": seen & ~pair, "pair": pair}


def _came_before(codes: Int64[Tensor, "samples length"]) -> Bool[Tensor, "samples length"]:
    """Whether a row has a number at an earlier place, too."""
    place = np.arange(codes.shape[1])
    found = []
    for row in codes.numpy():
        _, first, which = np.unique(row, return_index=True, return_inverse=True)
        found.append(first[which] < place)
    return torch.from_numpy(np.stack(found))


def _score(kind: Kind, nats: Tensor, mask: Tensor) -> FamiliarScore:
    """A mean over tokens, whose passages are what varies independently."""
    samples, length = mask.shape
    sums, counts = (nats * mask).sum(1), mask.sum(1).double()
    total = counts.sum()
    mean = sums.sum() / total
    spread = (sums - mean * counts).square().sum() * samples / (samples - 1)
    return FamiliarScore(
        kind=kind,
        length=length,
        share=total.item() / mask.numel(),
        nats=mean.item(),
        standard_error=math.sqrt(spread.item()) / total.item(),
        samples=samples,
    )
