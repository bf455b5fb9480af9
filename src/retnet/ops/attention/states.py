"""What attention remembers: a key and a value of every token, in the slot of its position."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retnet.ops.documents import used_slots
from retnet.ops.layout import Layout

NEAR = ("cpu",)
"""Devices whose positions the host may look at without waiting for them."""


class AttentionState(NamedTuple):
    """Keys and values of the current document of each row: it grows with every token.

    A row's first token is in slot 0 and so on, without gaps; a row that is shorter than another
    has unused slots at the end, zero, which are never looked at. How many it uses is its
    position, which `Layout` knows.
    """

    k: Float[Tensor, "B H_kv slots D_k"]
    v: Float[Tensor, "B H_kv slots D_v"]


def num_past(state: AttentionState | None, layout: Layout) -> Int[Tensor, " rows"] | None:
    """How many slots of the state each row uses; None for all of them in a call without masks."""
    return used_slots(layout, 0 if state is None else state.k.shape[2])


def documents(layout: Layout) -> Int[Tensor, "B T"] | None:
    """Which document of its row each token belongs to, 0 for that of the state; None for all."""
    return None if layout.starts is None else layout.starts.long().cumsum(1)


def appended(
    state: AttentionState | None,
    k: Float[Tensor, "B H_kv T D_k"],
    v: Float[Tensor, "B H_kv T D_v"],
    layout: Layout,
) -> AttentionState:
    """The state after these tokens: those of each row's last document, without gaps."""
    past = num_past(state, layout)
    if state is not None:
        k, v = torch.cat([state.k, k], 2), torch.cat([state.v, v], 2)
    if past is None:
        return AttentionState(k, v)
    slots = 0 if state is None else state.k.shape[2]
    source, used = layout.shared(
        ("attention source", slots), lambda: _sources(past, slots, layout, len(k))
    )

    def taken(x: Tensor) -> Tensor:
        at = source[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
        return x.gather(2, at).masked_fill(~used[:, None, :, None], 0)

    return AttentionState(taken(k), taken(v))


def _sources(
    past: Tensor, slots: int, layout: Layout, B: int
) -> tuple[Int[Tensor, "B after"], Bool[Tensor, "B after"]]:
    """Where the state after a call finds each slot's token, in old slots and then T new tokens.

    Also which slots are used.
    """
    T = layout.positions.shape[1]
    device = past.device
    of = documents(layout)
    kept = torch.ones(B, T, dtype=torch.bool, device=device)
    past = past.expand(B)
    if layout.valid is not None:
        kept = kept & layout.valid
    if of is not None:
        kept = kept & (of == of[:, -1:])
        past = past * (of[:, -1] == 0)
    slot = past[:, None] + kept.long().cumsum(1) - 1  # B T, of the tokens that are kept
    count = past + kept.sum(1)
    after = int(count.max()) if B else 0
    source = torch.arange(after, device=device).clamp(max=max(slots - 1, 0)).repeat(B, 1)
    source = torch.cat([source, source.new_zeros(B, 1)], 1)  # a last column for those not kept
    new = torch.arange(slots, slots + T, device=device).expand(B, T)
    source = source.scatter(1, torch.where(kept, slot, after), new)[:, :after]
    return source, torch.arange(after, device=device) < count[:, None]
