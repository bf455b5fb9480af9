"""Can a model tell where in a text of equal tokens it is? An exact probe, without training.

A mixer whose weights of the past sum to one returns the mean of equal values, which is the same at
every position, in every layer: nothing that follows can recover the position. The same holds for a
mixer whose output is normalised to a fixed length, but for its sign. Random weights show it, in
float64 (Su 2022, https://kexue.fm/archives/9105).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.model import Decoder, DecoderConfig

SAME = 1e-3
"""Outputs that differ by less than this share of the largest number count as one.

What the epsilon of a norm leaves of a position is smaller, and lost in half precision.
"""


@dataclass(frozen=True, kw_only=True)
class PositionScore:
    """How far the outputs at equal tokens differ.

    Attributes:
        spread: `max |o_n - o_0| / max |o|` over positions n and channels.
        told_apart: how many different outputs there are.
        tokens: how many there could be.
    """

    spread: float
    told_apart: int
    tokens: int


def score_positions(o: Float[Tensor, "T D"]) -> PositionScore:
    """Compare the outputs at T equal tokens.

    Example:
        >>> score_positions(torch.tensor([[2.0], [2.0], [1.0]]))
        PositionScore(spread=0.5, told_apart=2, tokens=3)
    """
    size = o.abs().max().item() or 1.0
    distances = torch.cdist(o, o, p=torch.inf) / size
    # an output is new where no earlier one is the same
    known = torch.tril(distances < SAME, -1).any(1)
    return PositionScore(
        spread=distances[0].max().item(), told_apart=int((~known).sum()), tokens=len(o)
    )


def shaken(module: nn.Module, seed: int) -> nn.Module:
    """The module in float64, with noise on all its weights, so that none is zero.

    The noise of a matrix keeps the size of what passes through it; that of vectors is small, so
    that decays and norms stay what they are.
    """
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise * (parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1))
    return module


@torch.no_grad()
def probe_positions(
    config: DecoderConfig, *, tokens: int = 32, bos: bool = False, draws: int = 5
) -> list[PositionScore]:
    """Scores of a decoder that reads one token over and over, for several draws of weights.

    Args:
        config: of the decoder; its vocabulary has two tokens or more.
        tokens: T.
        bos: whether another token precedes them, whose output does not count.
        draws: how many decoders are drawn.
    """
    text = torch.full((1, tokens + bos), 1)
    text[:, :bos] = 0
    scores = []
    for seed in range(draws):
        torch.manual_seed(seed)
        model = shaken(Decoder(config), seed)
        hidden, _ = model.hidden(text)  # type: ignore[operator]
        scores.append(score_positions(hidden[0, bos:]))
    return scores
