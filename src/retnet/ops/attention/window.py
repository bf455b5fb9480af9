"""What a sliding window remembers: the last keys and values, and a document's first ones."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from retnet.ops.attention.blocks import Keys
from retnet.ops.attention.reach import Reach
from retnet.ops.attention.states import NEAR, documents
from retnet.ops.layout import Layout


class WindowState(NamedTuple):
    """As large after a million tokens as after one: `slots = sinks + window`.

    The first `sinks` slots hold the document's first tokens, in the slot of their position. The
    others hold the last `window` of its later tokens, the most recent one last. A slot without
    a token is zero. What a ring buffer would hold, but equal texts give equal states.
    """

    k: Float[Tensor, "B H_kv slots D_k"]
    v: Float[Tensor, "B H_kv slots D_v"]


def slid(
    state: WindowState | None,
    k: Float[Tensor, "B H_kv T D_k"],
    v: Float[Tensor, "B H_kv T D_v"],
    layout: Layout,
    reach: Reach,
) -> WindowState:
    """The state after these tokens."""
    assert reach.window is not None
    slots = reach.sinks + reach.window
    if not reach.sinks and layout.valid is None and layout.starts is None:
        # neighbours in time are neighbours here, wherever a row is
        return WindowState(*(_last(old, new, slots) for old, new in _pairs(state, k, v)))
    source, used = layout.shared(
        ("attention window source", reach), lambda: _sources(layout, len(k), reach)
    )

    def taken(old: Tensor | None, new: Tensor) -> Tensor:
        if old is None:
            old = new.new_zeros(*new.shape[:2], slots, new.shape[3])
        at = source[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
        return torch.cat([old, new], 2).gather(2, at).masked_fill(~used[:, None, :, None], 0)

    return WindowState(*(taken(old, new) for old, new in _pairs(state, k, v)))


def window_keys(state: WindowState | None, layout: Layout, reach: Reach) -> tuple[Keys, int]:
    """The slots of the state that any row uses, and how many empty ones before the last are not.

    The latter is the one look at values that a window takes, once in a call for all layers, and
    not on a GPU, whose host would wait: there all slots are used or masked.
    """
    window, sinks, positions = reach.window, reach.sinks, layout.positions
    assert window is not None
    if state is None:
        none = positions[:, :0]
        return Keys(none, None, None, None, 0), 0

    def build() -> tuple[Keys, int]:
        past = positions[:, :1]  # rows 1
        near = past.numel() and past.device.type in NEAR
        longest = int(past.max()) if near else window + sinks
        unused = window - min(max(longest - sinks, 0), window)
        first = torch.arange(sinks, device=past.device).expand(len(past), -1)
        last = past - torch.arange(window - unused, 0, -1, device=past.device)
        place = torch.cat([first, last], 1)
        used = torch.cat([first < past, last >= sinks], 1)
        return Keys(place, used, None, None, place.shape[1]), unused

    return layout.shared(("attention window keys", reach), build)


def without_unused(x: Float[Tensor, "B H_kv slots D"], unused: int, sinks: int) -> Tensor:
    """Keys or values of a state less the empty slots between its sinks and its last tokens."""
    if not unused:
        return x
    last = x[:, :, sinks + unused :]
    return torch.cat([x[:, :, :sinks], last], 2) if sinks else last


def _pairs(
    state: WindowState | None, k: Tensor, v: Tensor
) -> tuple[tuple[Tensor | None, Tensor], tuple[Tensor | None, Tensor]]:
    old_k, old_v = (None, None) if state is None else state
    return (old_k, k), (old_v, v)


def _last(old: Tensor | None, new: Tensor, slots: int) -> Tensor:
    """The last so many slots of both, with zeros before them where there are fewer."""
    T = new.shape[2]
    if slots <= T:
        return new[:, :, T - slots :].clone()  # a view would keep all of them in memory
    if old is None:
        return F.pad(new, (0, 0, slots - T, 0))
    return torch.cat([old[:, :, T:], new], 2)


def _sources(
    layout: Layout, B: int, reach: Reach
) -> tuple[Int[Tensor, "B slots"], Bool[Tensor, "B slots"]]:
    """Where the state after a call finds each slot's token, in old slots and then T new tokens.

    Also which slots are used.
    """
    assert reach.window is not None
    sinks, slots = reach.sinks, reach.sinks + reach.window
    positions = layout.positions.expand(B, -1)
    T, device = positions.shape[1], positions.device
    after = layout.next_position.expand(B)[:, None]  # B 1
    kept = torch.ones(B, T, dtype=torch.bool, device=device)
    if layout.valid is not None:
        kept = kept & layout.valid
    of = documents(layout)
    if of is not None:
        kept = kept & (of == of[:, -1:])
    slot = torch.where(positions < sinks, positions, slots - (after - positions))
    kept = kept & ((positions < sinks) | (slot >= sinks))
    index = torch.arange(slots, device=device).expand(B, -1)
    moved = index + (after - positions[:, :1]).clamp(min=0)  # so many more tokens are after it
    source = torch.where(index < sinks, index, moved.clamp(max=slots - 1))
    source = torch.cat([source, source.new_zeros(B, 1)], 1)  # a last column for those not kept
    new = torch.arange(slots, slots + T, device=device).expand(B, T)
    source = source.scatter(1, torch.where(kept, slot, slots), new)[:, :slots]
    used = torch.where(index < sinks, index < after, slots - index <= after - sinks)
    return source, used
