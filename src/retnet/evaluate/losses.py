"""The loss of each token, and how it falls with what was read before."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from retnet.model import Decoder
from retnet.ops.cross_entropy import IGNORED

LOGITS = 1 << 22
"""Of which no more exist at a time."""


class PositionLoss(NamedTuple):
    """The loss of tokens that stand about equally deep in what was read.

    Attributes:
        first: fewest tokens that were read before.
        last: most.
        num_tokens: of the text that stand there.
        nats: mean loss.
        standard_error: of that mean, as if the tokens were independent.
    """

    first: int
    last: int
    num_tokens: int
    nats: float
    standard_error: float


def token_nats(
    model: Decoder, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Loss of each target, float32 or better; 0 where it is -100."""
    counted = (targets != IGNORED).nonzero().squeeze(1)
    nats = hidden.new_zeros(len(targets), dtype=torch.promote_types(hidden.dtype, torch.float32))
    rows = max(1, LOGITS // model.config.vocab_size)
    for part in counted.split(rows):
        logits = model.head(hidden[part]).to(nats.dtype)
        nats[part] = F.cross_entropy(logits, targets[part], reduction="none")
    return nats


class Tally:
    """Sums of losses by how much was read before, in steps of twice as much; constant in size."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3, 64, dtype=torch.float64)  # tokens, nats, squares

    def add(self, nats: Float[Tensor, "B T"], read: Int[Tensor, "B T"], mask: Tensor) -> None:
        """Take in the tokens of a batch that `mask` counts."""
        values = nats[mask].double().cpu()
        # 0, 1, 2 to 3, 4 to 7, ...: the number's length in bits
        bins = torch.frexp(read[mask].double()).exponent.long()
        for row, weights in zip(self._sums, (None, values, values**2), strict=True):
            row += torch.bincount(bins, weights, minlength=64)

    @property
    def nats(self) -> float:
        """Of all tokens."""
        return self._sums[1].sum().item()

    @property
    def num_tokens(self) -> int:
        """Of all tokens."""
        return int(self._sums[0].sum())

    def by_position(self) -> tuple[PositionLoss, ...]:
        """The losses of each step at which there were tokens."""
        found = []
        for bits, (count, total, squares) in enumerate(self._sums.T.tolist()):
            if count:
                mean = total / count
                variance = max(squares / count - mean**2, 0.0)
                first = 2 ** (bits - 1) if bits else 0
                last = 2**bits - 1
                error = math.sqrt(variance / count)
                found.append(PositionLoss(first, last, int(count), mean, error))
        return tuple(found)


class Interval(NamedTuple):
    """A mean, and where it lies with a probability of 95 %."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values with Student's interval of 95 %.

    Raises:
        ValueError: there are fewer than two values.

    Example:
        >>> [round(x, 2) for x in mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])]
        [3.0, 1.04, 4.96]
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, and there are {len(values)}")
    x = torch.tensor(values, dtype=torch.float64)
    half = _student(len(values) - 1) * x.std().item() / math.sqrt(len(values))
    mean = x.mean().item()
    return Interval(mean, mean - half, mean + half)


_FEW = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Quantiles 0.975 of Student's t at 1 to 10 degrees of freedom."""


def _student(freedom: int) -> float:
    """Quantile 0.975 of Student's t; beyond the table by Cornish and Fisher's expansion."""
    if freedom <= len(_FEW):
        return _FEW[freedom - 1]
    z = 1.959964
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2
