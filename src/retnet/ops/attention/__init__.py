"""Softmax attention over everything a row has read, through PyTorch's own kernels."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from retnet.ops.attention.masks import query_blocks
from retnet.ops.attention.states import AttentionState, appended, num_past
from retnet.ops.attention.static import StaticCache
from retnet.ops.layout import Layout


def attention(
    q: Float[Tensor, "B T H D_k"],
    k: Float[Tensor, "B T H_kv D_k"],
    v: Float[Tensor, "B T H_kv D_v"],
    state: AttentionState | None = None,
    *,
    layout: Layout | None = None,
) -> tuple[Float[Tensor, "B T H D_v"], AttentionState]:
    """Mix tokens with a softmax over the scores of all tokens up to each.

    `o_n = sum_(j<=n) p_nj v_j` with `p_n = softmax_j(D_k^(-1/2) q_n . k_j)`, j over the tokens of
    n's document that are no padding. Head h reads the keys and values of head
    `h // (H / H_kv)`. Differentiable in q, k, v and state.

    Args:
        q: queries, not scaled: that is done here.
        k: keys of the same tokens.
        v: their values.
        state: keys and values of the tokens before; None at the start of a sequence.
        layout: padding and document starts of this call, and how many keys of the state belong to
            each row. None when all of them do and there is nothing else to say.

    Returns:
        o in q's dtype, zero at padding, and the state after the last token, which holds a key and
        a value for each token of the current document and nothing else.

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
    """
    _check(q, k, v, state)
    B, T = q.shape[:2]
    layout = layout or Layout.of(B, T, position=_full_rows(state), device=q.device)
    if layout.spread is not None:
        raise ValueError(
            "attention does not pass keys between ranks, so its rows must not be spread over "
            "several (sequence); run them whole (train.sequence_ranks = 1)"
        )
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # B H T D, as the kernels have it
    with torch.autocast(q.device.type, enabled=False):  # the caller has chosen the dtype
        after = appended(state, k, v, layout)
        dense = num_past(state, layout) is None
        if not dense and state is not None:  # slots of the state, whoever they belong to, then ours
            k, v = torch.cat([state.k, k], 2), torch.cat([state.v, v], 2)
        elif dense:
            k, v = after
        o = _mix(q, k, v, layout, dense)
    return o.transpose(1, 2), after


def _mix(q: Tensor, k: Tensor, v: Tensor, layout: Layout, dense: bool) -> Tensor:
    """Attend to keys of which the last T are those of the queries, (B, H, T, D_v)."""
    T, slots = q.shape[2], k.shape[2]
    if dense and T in (1, slots):
        return one_token(q, k, v) if T == 1 else _sdpa(q, k, v, is_causal=True)
    blocks = []
    for start, stop, mask in query_blocks(layout, slots - T, T, dense):
        keys = slots - T + stop  # later ones are in the future
        part = q[:, :, start:stop], k[:, :, :keys], v[:, :, :keys]
        blocks.append(one_token(*part, mask) if T == 1 else _sdpa(*part, mask=mask))
    o = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)
    return o if layout.valid is None else o.masked_fill(~layout.valid[:, None, :, None], 0)


def one_token(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend with one query per row and head, (B, H, 1, D_v), to all keys or those of the mask.

    Heads that share keys become queries of one head, so that the keys are read once.
    """
    B, H, _, D_k = q.shape
    grouped = q.view(B, k.shape[1], -1, D_k)  # B H_kv G D_k
    return F.scaled_dot_product_attention(grouped, k, v, mask).view(B, H, 1, -1)


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def _full_rows(state: AttentionState | None) -> Tensor | None:
    if state is None:
        return None
    B, _, slots, _ = state.k.shape
    return torch.full((B,), slots, device=state.k.device)


def _check(q: Tensor, k: Tensor, v: Tensor, state: AttentionState | None) -> None:
    """Refuse metadata that does not fit; values are not looked at."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must have 4 dimensions, "
                "(B, T, H, D): add the missing ones with [None] or unflatten"
            )
    B, T, H, D_k = q.shape
    if T == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}: T is 0; pass at least one token")
    H_kv = k.shape[2]
    if k.shape != (B, T, H_kv, D_k) or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"k has shape {tuple(k.shape)} and v {tuple(v.shape)}; beside q {tuple(q.shape)} they "
            "must be (B, T, H_kv, D_k) and (B, T, H_kv, D_v)"
        )
    if H_kv == 0 or H % H_kv:
        raise ValueError(
            f"q has {H} heads and k {H_kv}; the number of queries' heads must be a multiple of "
            "that of keys"
        )
    if not q.dtype.is_floating_point or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}; they must share one floating "
            "dtype: cast with .to(q.dtype)"
        )
    for name, tensor in (
        ("k", k),
        ("v", v),
        *zip(("state.k", "state.v"), state or (), strict=False),
    ):
        if tensor.device != q.device:
            raise ValueError(
                f"{name} is on {tensor.device} and q on {q.device}; move them to one device"
            )
    if state is None:
        return
    for name, held, new in (("k", state.k, k), ("v", state.v, v)):
        slots = state.k.shape[2] if state.k.ndim == 4 else -1
        want = (B, H_kv, slots, new.shape[3])
        if held.shape != want:
            raise ValueError(
                f"state.{name} has shape {tuple(held.shape)}; it must be (B, H_kv, slots, D) = "
                f"({B}, {H_kv}, slots, {new.shape[3]}), with as many slots in k as in v"
            )
        if held.dtype != q.dtype:
            raise ValueError(
                f"state.{name} has dtype {held.dtype} and q {q.dtype}; read a text in one dtype"
            )


__all__ = ["AttentionState", "StaticCache", "attention"]
