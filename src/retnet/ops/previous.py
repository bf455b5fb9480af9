"""The tokens before each token: what token shifts and short convolutions read."""

from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retnet.ops.layout import Layout


def previous_tokens(
    x: Float[Tensor, "B T *W"],
    count: int,
    before: Float[Tensor, "B count *W"] | None = None,
    *,
    layout: Layout | None = None,
) -> tuple[tuple[Float[Tensor, "B T *W"], ...], Float[Tensor, "B count *W"]]:
    """Give each token the values of the tokens before it in its document.

    Padding is skipped over, and beyond a document's first token there are zeros.

    Args:
        x: a value of each token.
        count: how many tokens back, at least 1.
        before: values of the last `count` tokens before these, the most recent last; zeros where
            there were none. None at the start of a sequence.
        layout: padding and document starts; None when there are none.

    Returns:
        For j = 1 to `count`, the value j tokens back of each token (anything at padding), and what
        `before` is for the tokens after these, in float32 or better.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[1.0], [2.0], [3.0]]])
        >>> (one, two), after = previous_tokens(x, 2)
        >>> one.flatten().tolist(), two.flatten().tolist(), after.flatten().tolist()
        ([0.0, 1.0, 2.0], [0.0, 0.0, 1.0], [2.0, 3.0])
    """
    B, T = x.shape[:2]
    exact = torch.promote_types(x.dtype, torch.float32)
    if before is None:
        before = x.new_zeros(B, count, *x.shape[2:], dtype=exact)
    slots = torch.cat([before.to(x.dtype), x], 1)  # B count+T *W
    if layout is None or (layout.valid is None and layout.starts is None):
        shifted = tuple(slots[:, count - j : count - j + T] for j in range(1, count + 1))
        return shifted, slots[:, T:].to(exact)
    index, there = layout.shared(("previous", count), lambda: _sources(layout, count))
    parts = [T] * count + [count]
    *shifted, after = map(partial(_taken, slots), index.split(parts, 1), there.split(parts, 1))
    return tuple(shifted), after.to(exact)


def _sources(layout: Layout, count: int) -> tuple[Int[Tensor, "B slots"], Bool[Tensor, "B slots"]]:
    """Slots of what j = 1 to `count` tokens back is, T each, then of the last `count` tokens.

    Also which of them exist: without starts all do, for what came before the first is zero.
    """
    mask = layout.valid if layout.valid is not None else layout.starts
    assert mask is not None
    real = torch.ones_like(mask) if layout.valid is None else layout.valid
    rank = real.long().cumsum(1)  # B T, real tokens up to and with this one
    # slots of the state, then those of the real tokens in their order
    order = torch.argsort((~real).long(), dim=1, stable=True) + count
    state = torch.arange(count, device=real.device).expand(len(real), count)
    slot_of = torch.cat([state, order], 1)
    behind = torch.arange(1, count + 1, device=real.device)
    rank_before = rank - real.long()  # of real tokens before this one
    index = rank_before[:, None] + count - behind[:, None]  # B count T
    positions = layout.positions.expand_as(rank)
    there = positions[:, None] >= behind[:, None]
    last = rank[:, -1:] + torch.arange(count, device=real.device)  # B count
    last_there = layout.next_position[:, None] >= count - torch.arange(count, device=real.device)
    index = torch.cat([index.flatten(1), last], 1)
    return slot_of.gather(1, index), torch.cat([there.flatten(1), last_there], 1)


def _taken(slots: Tensor, index: Tensor, there: Tensor) -> Tensor:
    wide = (..., *[None] * (slots.ndim - 2))
    taken = slots.gather(1, index[wide].expand(-1, -1, *slots.shape[2:]))
    return taken.masked_fill(~there[wide], 0)


__all__ = ["previous_tokens"]
