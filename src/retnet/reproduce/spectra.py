"""Spectra of mixing matrices: how many directions a T x T matrix of weights really has."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

TOKENS, WIDTH, DRAWS = 128, 16, 32
"""T, D_k and the number of random queries and keys."""


def effective_rank(weights: Float[Tensor, "*batch T T"]) -> Float[Tensor, "*batch"]:
    """exp of the entropy of the singular values, as shares of their sum.

    Source:
        Roy and Vetterli 2007, "The effective rank".

    Example:
        >>> effective_rank(torch.eye(4)).item()
        4.0
    """
    values = torch.linalg.svdvals(weights.double())
    return torch.special.entr(values / values.sum(-1, keepdim=True)).sum(-1).exp()


class Spectrum(NamedTuple):
    """Of some random matrices of one kind.

    Attributes:
        values: mean of the singular values, as shares of the largest.
        effective_rank: mean of the matrices' own.
    """

    values: Float[Tensor, " T"]
    effective_rank: float


def random_spectra(
    tokens: int = TOKENS, width: int = WIDTH, draws: int = DRAWS, seed: int = 0
) -> dict[str, Spectrum]:
    """Spectra of weights between random queries and keys, by the kind of weights.

    A causal softmax has full rank: its determinant is the product of a positive diagonal. A linear
    attention that looks both ways has at most the rank D_k.

    Args:
        tokens: T.
        width: D_k.
        draws: matrices to take the mean of.
        seed: of queries and keys, normal.
    """
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, draws, tokens, width, generator=generator, dtype=torch.float64)
    found = {}
    for name, weigh in MATRICES.items():
        weights = weigh(q, k)
        values = torch.linalg.svdvals(weights)
        shares = (values / values[:, :1]).mean(0)
        found[name] = Spectrum(shares, effective_rank(weights).mean().item())
    return found


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def _causal_softmax(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    ahead = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    return scores.masked_fill(ahead, -torch.inf).softmax(-1)


def _linear(q: Tensor, k: Tensor) -> Tensor:
    return F.normalize((F.elu(q) + 1) @ (F.elu(k) + 1).mT, p=1, dim=-1)


def _causal_linear(q: Tensor, k: Tensor) -> Tensor:
    return F.normalize(((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril(), p=1, dim=-1)


def _retention(q: Tensor, k: Tensor) -> Tensor:
    """With the slowest decay of a model of eight heads, 1 - 2^-12."""
    place = torch.arange(q.shape[1], dtype=q.dtype)
    decay = (1 - 2.0**-12) ** (place[:, None] - place)
    return (q @ k.mT * decay).tril()


MATRICES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax, both ways": _softmax,
    "softmax, causal": _causal_softmax,
    "linear attention, both ways": _linear,
    "linear attention, causal": _causal_linear,
    "retention": _retention,
}
"""Weights of queries and keys, (draws, T, D_k) each."""
