"""Which keys a query may look at, where the kernels' own rule does not say it."""

from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor

from retnet.ops.attention.states import documents
from retnet.ops.layout import Layout

QUERY_BLOCK = 512
"""Queries that get a mask together: memory of a mask, and future keys that are left out."""


def query_blocks(
    layout: Layout, slots: int, T: int, dense: bool
) -> Iterator[tuple[int, int, Bool[Tensor, "rows 1 queries keys"]]]:
    """First and last query (exclusive) of each block, and what they see.

    The keys are the state's slots and then those of this call up to the block's last query.

    Args:
        layout: of the call.
        slots: of the state.
        T: tokens of the call.
        dense: all slots belong to each row and there are no masks.
    """
    for start in range(0, T, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, T)
        build = partial(_seen, layout, slots, start, stop, dense)
        mask = layout.shared(("attention mask", slots, start), build)
        yield start, stop, mask


def _seen(layout: Layout, slots: int, start: int, stop: int, dense: bool) -> Tensor:
    device = layout.positions.device
    token = torch.arange(stop, device=device)
    query = token[start:, None]
    new = (token <= query)[None]  # 1 queries tokens
    if layout.valid is not None:
        # a padded query sees itself, so that no softmax is over nothing
        new = new & (layout.valid[:, None, :stop] | (token == query))
    past = torch.ones(1, stop - start, slots, dtype=torch.bool, device=device)
    if not dense:
        used = layout.positions[:, :1].clamp(max=slots)
        past = past & (torch.arange(slots, device=device) < used)[:, None]
    of = documents(layout)
    if of is not None:
        new = new & (of[:, None, :stop] == of[:, start:stop, None])
        past = past & (of[:, start:stop, None] == 0)
    rows = max(len(past), len(new))
    return torch.cat([past.expand(rows, -1, -1), new.expand(rows, -1, -1)], 2)[:, None]
