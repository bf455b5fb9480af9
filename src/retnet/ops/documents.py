"""Documents of a call laid side by side, for what is simplest without padding and starts.

A convolution knows only how far apart tokens are. Rows with padding or several documents are
therefore cut up: each document becomes a row of its own, its tokens from the first slot on, and
results go back to where the tokens came from. Documents go together with those of less than twice
their length, so that no batch holds much more than the tokens there are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retnet.ops.layout import Layout


class Documents(NamedTuple):
    """Documents of similar length, one to a row.

    Attributes:
        token: which of all B T tokens each slot holds; some token or other in unused slots.
        used: slots with a token.
        length: tokens of each document in this call; 0 is possible for one that goes on.
        row: the row that each comes from.
        entered: whether it began in an earlier call, or may have: a row's first.
        left: whether its state is that of the row after the call: a row's last.
    """

    token: Int[Tensor, "n L"]
    used: Bool[Tensor, "n L"]
    length: Int[Tensor, " n"]
    row: Int[Tensor, " n"]
    entered: Bool[Tensor, " n"]
    left: Bool[Tensor, " n"]

    def tokens_of(self, x: Float[Tensor, "B T *rest"]) -> Float[Tensor, "n L *rest"]:
        """The documents' own slices of `x`, zero in unused slots."""
        return _where(self.used, x.flatten(0, 1)[self.token])

    def states_of(self, state: Any) -> Any:
        """Rows of the state that enters each document: zero for those that begin here."""
        if state is None:
            return None
        return type(state)(*(_where(self.entered, leaf[self.row]) for leaf in state))


Core = Callable[[Any, Any, Int[Tensor, " n"] | None], tuple[Any, Any]]
"""`(x, state, length) -> (y, state)` over rows that hold one document each, from slot 0 on.

The state after is that after `length` tokens of each row, all of them where it is None.
"""


def by_document(
    core: Core, x: Float[Tensor, "B T *rest"], state: Any, layout: Layout
) -> tuple[Float[Tensor, "B T *out"], Any]:
    """Run `core` as if there were neither padding nor starts.

    Args:
        core: what to run; directly on `x` where the layout has no masks.
        x: its input.
        state: a NamedTuple of tensors, batch first and zero for a fresh row, or None.
        layout: padding and document starts.

    Returns:
        `core`'s output, zero at padding, and the state after each row's last document.

    Raises:
        ValueError: the layout's rows are spread over ranks.
    """
    if layout.spread is not None:
        raise ValueError(
            "documents are not passed between ranks, so their rows must not be spread over several "
            "(sequence); run them whole (train.sequence_ranks = 1)"
        )
    if layout.valid is None and layout.starts is None:
        return core(x, state, None)
    B, T = x.shape[:2]
    groups = documents(layout, B, T)
    results = [core(g.tokens_of(x), g.states_of(state), g.length) for g in groups]
    y = torch.cat([y[g.used] for g, (y, _) in zip(groups, results, strict=True)])
    places = torch.cat([g.token[g.used] for g in groups])
    y = y.new_zeros(B * T, *y.shape[1:]).index_copy(0, places, y)
    # each row has one last document
    order = torch.cat([g.row[g.left] for g in groups]).argsort()
    lefts = [[leaf[g.left] for leaf in s] for g, (_, s) in zip(groups, results, strict=True)]
    leaves = (torch.cat(parts)[order] for parts in zip(*lefts, strict=True))
    return y.unflatten(0, (B, T)), type(results[0][1])(*leaves)


def newest(
    past: Float[Tensor, "n slots *rest"],
    x: Float[Tensor, "n L *rest"],
    length: Int[Tensor, " n"] | None,
) -> Float[Tensor, "n slots *rest"]:
    """The last values after `length` tokens of each row, most recent last, as many as in `past`."""
    both, slots = torch.cat([past, x], 1), past.shape[1]
    if length is None:
        return both[:, x.shape[1] :]
    at = length[:, None] + torch.arange(slots, device=x.device)
    return both[torch.arange(len(x), device=x.device)[:, None], at]


def used_slots(layout: Layout, slots: int) -> Int[Tensor, " rows"] | None:
    """How many slots of a state that grows each row uses; None for all in a call without masks.

    A look at values, once in a call for all layers.
    """

    def build() -> Tensor | None:
        past = layout.positions[:, 0].clamp(max=slots)
        masks = layout.valid is not None or layout.starts is not None
        return past if masks or (slots and bool((past < slots).any())) else None

    return layout.shared(("used slots", slots), build)


def longest_document(layout: Layout) -> int:
    """The most tokens that any document has at any token of the call; a look at values."""

    def build() -> int:
        count = layout.positions + 1
        if layout.valid is not None:
            count = count.masked_fill(~layout.valid, 0)
        return int(count.max()) if count.numel() else 0

    return layout.shared("longest document", build)


def documents(layout: Layout, B: int, T: int) -> list[Documents]:
    """All documents of a call, including those that each row goes on with, in groups."""
    return layout.shared(("documents", B, T), lambda: _documents(layout, B, T))


def _documents(layout: Layout, B: int, T: int) -> list[Documents]:
    device = layout.positions.device
    mask = torch.zeros(B, T, dtype=torch.bool, device=device)
    valid = ~mask if layout.valid is None else layout.valid
    starts = mask if layout.starts is None else layout.starts
    count = starts.sum(1) + 1  # documents of each row, its state's among them
    first = count.cumsum(0) - count
    n = int(count.sum())
    token = valid.flatten().nonzero()[:, 0]  # by row, and in a row by time: so by document
    of = (first[:, None] + starts.cumsum(1)).flatten()[token]
    length = of.bincount(minlength=n)
    begin = length.cumsum(0) - length
    row = torch.arange(B, device=device).repeat_interleave(count)
    at = torch.arange(n, device=device)
    entered, left = at == first[row], at == (first + count - 1)[row]
    doubling = torch.frexp(length.double()).exponent  # 0 for 0, 1 for 1, 2 for 2 and 3, ...
    doubling = torch.where((length > 0) | left, doubling, -1)  # what is empty and goes nowhere
    groups = []
    for power in doubling.unique().tolist():
        if power < 0:
            continue
        chosen = (doubling == power).nonzero()[:, 0]
        longest = max(int(length[chosen].max()), 1)
        slot = torch.arange(longest, device=device)
        used = slot < length[chosen, None]
        which = (begin[chosen, None] + slot).clamp(max=max(len(token) - 1, 0))
        tokens = token[which] if len(token) else torch.zeros_like(which)
        table = torch.where(used, tokens, 0)
        parts = (x[chosen] for x in (length, row, entered, left))
        groups.append(Documents(table, used, *parts))
    return groups


def _where(kept: Tensor, x: Tensor) -> Tensor:
    """Zero `x` where `kept`, its first axes, is False, whatever stands there."""
    return x.masked_fill(~kept.view(*kept.shape, *[1] * (x.ndim - kept.ndim)), 0)
