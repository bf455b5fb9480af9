"""Softmax attention over what a row has read, through PyTorch's own kernels."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops.attention.blocks import QUERY_BLOCK, Block, Keys, query_blocks
from retnet.ops.attention.checks import check
from retnet.ops.attention.reach import EVERYTHING, Reach
from retnet.ops.attention.rule import PLAIN, Rule, mixed, mixed_again, one_token, sdpa
from retnet.ops.attention.states import AttentionState, appended, num_past
from retnet.ops.attention.static import StaticCache
from retnet.ops.attention.window import WindowState, slid, window_keys, without_unused
from retnet.ops.layout import Layout


def attention(
    q: Float[Tensor, "B T H D_k"],
    k: Float[Tensor, "B T H_kv D_k"],
    v: Float[Tensor, "B T H_kv D_v"],
    state: AttentionState | WindowState | None = None,
    *,
    layout: Layout | None = None,
    reach: Reach = EVERYTHING,
    rule: Rule = PLAIN,
) -> tuple[Float[Tensor, "B T H D_v"], AttentionState | WindowState]:
    """Mix tokens with a softmax over the scores of all tokens up to each.

    `o_n = sum_(j<=n) p_nj v_j` with `p_n = softmax_j(D_k^(-1/2) q_n . k_j)`, j over the tokens of
    n's document that are no padding and within reach. Head h reads the keys and values of head
    `h // (H / H_kv)`. Differentiable in q, k, v and state.

    Args:
        q: queries, not scaled: that is done here.
        k: keys of the same tokens.
        v: their values.
        state: keys and values of the tokens before; None at the start of a sequence.
        layout: padding and document starts of this call, and how many keys of the state belong to
            each row. None when all of them do and there is nothing else to say; a window's state
            needs it.
        reach: how far back a query looks.
        rule: what differs in the weights.

    Returns:
        o in q's dtype, zero at padding, and the state after the last token: an `AttentionState`,
        which holds a key and a value for each token of the current document and nothing else, or
        the `WindowState` of a window.

    Raises:
        ValueError: sizes, dtypes or devices do not fit each other, or the layout's rows are spread
            over ranks.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762; grouped heads: Ainslie et al. 2023, arXiv:2305.13245.

    Example:
        >>> import torch
        >>> q = k = torch.zeros(1, 3, 1, 1)  # equal scores: the mean of all values so far
        >>> v = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)
        >>> attention(q, k, v)[0].flatten().tolist()
        [1.0, 1.5, 3.0]
        >>> attention(q, k, v, reach=Reach(window=2))[0].flatten().tolist()
        [1.0, 1.5, 4.0]
    """
    check(q, k, v, state, reach)
    B, T = q.shape[:2]
    if layout is None:
        layout = Layout.of(B, T, position=_full_rows(state), device=q.device)
    if layout.spread is not None:
        raise ValueError(
            "attention does not pass keys between ranks, so its rows must not be spread over "
            "several (sequence); run them whole (train.sequence_ranks = 1)"
        )
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # B H T D, as the kernels have it
    with torch.autocast(q.device.type, enabled=False):  # the caller has chosen the dtype
        if reach.window is None:
            after, past, k, v = _with_all(state, k, v, layout)
        else:
            after, past, k, v = _with_last(state, k, v, layout, reach)
        masks = layout.valid is not None or layout.starts is not None or past.used is not None
        whole = past.num_past == 0 and (reach.window is None or reach.window >= T)
        if rule.is_plain and not masks and T == 1 and reach.window is None:
            o = one_token(q, k, v, None, rule.scale)
        elif rule.is_plain and not masks and whole:
            o = sdpa(q, k, v, is_causal=True, scale=rule.scale)
        else:
            o = _mixed_in_blocks(q, k, v, query_blocks(layout, past, T, reach), rule, layout)
    return o.transpose(1, 2), after


def _mixed_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, blocks: Iterable[Block], rule: Rule, layout: Layout
) -> Tensor:
    long = q.shape[2] > QUERY_BLOCK and torch.is_grad_enabled()
    mix = mixed_again if long and rule.is_large else mixed
    parts = []
    for block in blocks:
        here = q[:, :, block.start : block.stop]
        parts.append(mix(here, block.taken(k, 2), block.taken(v, 2), block, rule, layout))
    o = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    return o if layout.valid is None else o.masked_fill(~layout.valid[:, None, :, None], 0)


def _with_all(
    state: AttentionState | WindowState | None, k: Tensor, v: Tensor, layout: Layout
) -> tuple[AttentionState, Keys, Tensor, Tensor]:
    """The state after the call, what is known of the past, and all keys and values."""
    assert not isinstance(state, WindowState)
    after = appended(state, k, v, layout)
    slots = 0 if state is None else state.k.shape[2]
    place = torch.arange(slots, device=layout.positions.device)[None]
    if num_past(state, layout) is None:
        return after, Keys(place, None, None, None, slots), after.k, after.v
    used = place < layout.positions[:, :1] if slots else None
    if state is not None:  # slots of the state, whoever they belong to, then ours
        k, v = torch.cat([state.k, k], 2), torch.cat([state.v, v], 2)
    return after, Keys(place, used, None, None, slots), k, v


def _with_last(
    state: AttentionState | WindowState | None, k: Tensor, v: Tensor, layout: Layout, reach: Reach
) -> tuple[WindowState, Keys, Tensor, Tensor]:
    """The same of a window."""
    assert not isinstance(state, AttentionState)
    after = slid(state, k, v, layout, reach)
    past, unused = window_keys(state, layout, reach)
    if state is not None:
        held = (without_unused(x, unused, reach.sinks) for x in state)
        k, v = (torch.cat(xs, 2) for xs in zip(held, (k, v), strict=True))
    return after, past, k, v


def _full_rows(state: AttentionState | WindowState | None) -> Tensor | None:
    if state is None:
        return None
    if isinstance(state, WindowState):
        raise ValueError(
            "the state of a window does not say how many tokens a row has read; pass a layout "
            "(Layout.of with position)"
        )
    B, _, slots, _ = state.k.shape
    return torch.full((B,), slots, device=state.k.device)


__all__ = [
    "EVERYTHING",
    "PLAIN",
    "AttentionState",
    "Reach",
    "Rule",
    "StaticCache",
    "WindowState",
    "attention",
]
