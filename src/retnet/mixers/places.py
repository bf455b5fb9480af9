"""Leaves with a place for each token since a program began: what is small is kept after each."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.mixers.branch import ROOM


class TokenLeaves(NamedTuple):
    """Of a branch that keeps the last token and nothing else."""

    past: Float[Tensor, "B places D"]


def begin_places(x: Float[Tensor, "B D"]) -> Float[Tensor, "B places D"]:
    """What there was before the first token, and room for what is after each."""
    places = x.new_zeros(len(x), ROOM + 1, x.shape[1], dtype=torch.float32)
    places[:, 0] = x
    return places


def end_places(places: Float[Tensor, "B places D"], used: int) -> Float[Tensor, "B D"]:
    """What there is after the first `used` tokens."""
    return places[:, used].clone()
