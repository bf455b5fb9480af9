"""Products of queries and keys that are rotated when they are read, not when they are kept.

ReRoPE shrinks large distances, so that none is larger than those of the training; dynamic scaling
changes the frequencies as the text grows. Neither is a rotation of a key by its own position alone.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops.attention.blocks import Block
from retnet.ops.attention.rule import products
from retnet.ops.rotation import PairLayout, rotate, turning_tables


class Reread(NamedTuple):
    """How a text's distances d are turned into angles.

    Attributes:
        frequencies: of each pair of channels.
        pairs: which channels rotate together.
        window: w; distances below it stay.
        slowdown: k; larger ones become `w + (d - w) / k`, or w where it is None.
    """

    frequencies: Float[Tensor, " pairs"]
    pairs: PairLayout
    window: int | None = None
    slowdown: float | None = None

    def shrunk(self, distance: Tensor) -> Tensor:
        """The distance that counts, float64."""
        distance = distance.double()
        if self.window is None:
            return distance
        beyond = (distance - self.window).clamp(min=0) / (self.slowdown or torch.inf)
        return distance.clamp(max=self.window) + beyond

    def turned(
        self, x: Float[Tensor, "B H places D"], places: Float[Tensor, "rows places"]
    ) -> Float[Tensor, "B H places D"]:
        """Rotate by places, which need not be whole."""
        cos, sin = turning_tables(places, self.frequencies, x.dtype)
        return rotate(x.transpose(1, 2), cos, sin, self.pairs).transpose(1, 2)


def turned_for_one(how: Reread, q: Tensor, k: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """A block of one query: it stays, and keys turn back by their distance from it."""
    return q, how.turned(k, -how.shrunk((block.q_place - block.k_place).clamp(min=0)))


def rerope_scores(
    how: Reread, q: Float[Tensor, "B H queries D"], k: Float[Tensor, "B H_kv keys D"], block: Block
) -> Float[Tensor, "B H queries keys"]:
    """Products at shrunk distances.

    Two rotations serve all pairs: by i and j where `i - j < w`, elsewhere by `w + (i - w) / k` and
    `j / k`, whose difference is `w + (i - j - w) / k`.

    Source:
        Su 2023, kexue.fm/archives/9708.
    """
    assert how.window is not None
    i, j = block.q_place.double(), block.k_place.double()
    near = products(how.turned(q, i), how.turned(k, j))
    slow = how.slowdown or torch.inf
    far = products(how.turned(q, (i - how.window) / slow + how.window), how.turned(k, j / slow))
    distance = i[..., None] - j[:, None]
    return torch.where((distance < how.window)[:, None], near, far)


def scores_by_length(
    tables: dict[int, Reread], lengths: Tensor, q: Tensor, k: Tensor, block: Block
) -> Float[Tensor, "B H queries keys"]:
    """Products with other frequencies for queries of texts of other lengths.

    Args:
        tables: what each length rotates by.
        lengths: of the text up to each query, a key of the tables, (rows, queries).
        q: not rotated, as k.
        k: of the block.
        block: where both stand.
    """
    i, j = block.q_place.double(), block.k_place.double()
    changes = (lengths[:, 1:] != lengths[:, :-1]).any(0).nonzero().flatten() + 1
    edges = [0, *changes.tolist(), lengths.shape[1]]
    parts = []
    for start, stop in pairwise(edges):
        here, of_row = q[:, :, start:stop], lengths[:, start, None, None, None]
        scores: Tensor | None = None
        for length in of_row.unique().tolist():
            how = tables[length]
            found = products(how.turned(here, i[:, start:stop]), how.turned(k, j))
            scores = found if scores is None else torch.where(of_row == length, found, scores)
        assert scores is not None
        parts.append(scores)
    return torch.cat(parts, 2)
