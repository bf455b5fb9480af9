"""Retention in PyTorch: three forms of one recurrence. The derivation is in README.md."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from retnet.ops.layout import Layout


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that S is kept in for inputs of `dtype`: float32 or better."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    layout: Layout | None,
) -> tuple[Tensor, Tensor]:
    """One token after the other: the definition, and the reference of every other form."""
    exact = state_dtype(q.dtype)
    decay = log_decay.to(exact).exp()[:, None, None]  # H 1 1
    S = _or_zeros(state, q, v)
    valid = layout.valid if layout is not None else None
    starts = layout.starts if layout is not None else None
    outputs = []
    for n in range(q.shape[1]):
        q_n, k_n, v_n = (x[:, n].to(exact) for x in (q, k, v))  # B H D
        if starts is not None:
            S = torch.where(starts[:, n, None, None, None], 0.0, S)
        new = decay * S + k_n[..., :, None] * v_n[..., None, :]
        S = new if valid is None else torch.where(valid[:, n, None, None, None], new, S)
        o_n = (q_n[..., None, :] @ S).squeeze(-2)  # B H D_v
        outputs.append(o_n if valid is None else o_n * valid[:, n, None, None])
    return torch.stack(outputs, 1).to(q.dtype), S


def parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    layout: Layout | None,
) -> tuple[Tensor, Tensor]:
    """All pairs of tokens at once: one chunk as long as the sequence."""
    inputs = [_chunks(x, q.shape[1]) for x in (q, k, v)]
    weights = chunk_weights(log_decay, layout, q.shape[1], q.shape[1], inputs[0].dtype)
    qc, kc, vc = inputs
    S = _or_zeros(state, q, v)
    scores = (qc @ kc.mT) * weights.within  # B H 1 T T
    o = scores @ vc + (qc * weights.from_start) @ S[:, :, None].to(qc.dtype)
    S = weights.carry[:, :, 0] * S + ((kc * weights.to_end).mT @ vc)[:, :, 0]
    return _tokens(o, q), S


def chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    layout: Layout | None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Pairs of tokens inside a chunk, the state between chunks: linear in T."""
    C = min(chunk_size or default_chunk_size(q.shape[-1], v.shape[-1]), q.shape[1])
    qc, kc, vc = (_chunks(x, C) for x in (q, k, v))
    weights = chunk_weights(log_decay, layout, q.shape[1], C, qc.dtype)
    o, S = _Chunkwise.apply(qc, kc, vc, _or_zeros(state, q, v), weights)
    return _tokens(o, q), S


def default_chunk_size(D_k: int, D_v: int) -> int:
    """Tokens of a chunk at which pairs inside it cost about as much as its two state products.

    Per token and head a chunk of C costs `2 C (D_k + D_v)` for pairs and `4 D_k D_v` for the
    state; a power of two between 32 and 256 near the balance is fastest on the CPUs measured.
    """
    balance = 2 * D_k * D_v / (D_k + D_v)
    return min(256, max(32, 1 << round(balance).bit_length() - 1))


class ChunkWeights(NamedTuple):
    """Decay between the tokens of a chunk and to its ends; rows and chunks that agree share one.

    Exponents count real tokens only, so padding decays nothing; what a document start cuts off,
    and what padding would add, is zero.
    """

    within: Tensor  # b H n C C, from token j to token i
    from_start: Tensor  # b H n C 1, from the state that enters to token i
    to_end: Tensor  # b H n C 1, from token j to the state that leaves
    carry: Tensor  # b H n 1 1, from the state that enters to the one that leaves


def chunk_weights(
    log_decay: Tensor, layout: Layout | None, T: int, C: int, dtype: torch.dtype
) -> ChunkWeights:
    """Weights of every chunk, once in a call for all layers that share a tensor of decays."""

    def build() -> ChunkWeights:
        return _chunk_weights(log_decay, layout, T, C, dtype)

    if layout is None:
        return build()
    return layout.shared(("chunk_weights", log_decay, T, C, dtype), build)  # hashed by identity


def _chunk_weights(
    log_decay: Tensor, layout: Layout | None, T: int, C: int, dtype: torch.dtype
) -> ChunkWeights:
    """Computed in float32 or better and rounded to `dtype` last."""
    exact = state_dtype(dtype)
    log_decay = log_decay.to(exact)[None, :, None, None]  # 1 H 1 1
    valid = layout.valid if layout is not None else None
    real, seen, document = _count(layout, T, C, log_decay.device)
    from_start = (log_decay * seen).exp()
    carry = (log_decay * seen[..., -1:]).exp()
    causal = torch.ones(C, C, dtype=torch.bool, device=log_decay.device).tril()
    if valid is None:  # the short chunk's tail holds zeros, so one matrix serves all chunks
        steps = torch.arange(C, device=log_decay.device)
        apart, open_ = (steps[:, None] - steps)[None, None, None], causal  # 1 1 1 C C
    else:
        apart = seen[..., :, None] - seen[..., None, :]  # b 1 n C C
        open_ = causal & real[..., None, :] & real[..., :, None]
    within = (log_decay[..., None] * apart.clamp(min=0)).exp()  # clamped first: no inf * 0
    if document is not None:
        open_ = open_ & (document[..., :, None] == document[..., None, :])
        from_start = from_start * (document == 0)
        carry = carry * (document[..., -1:] == 0)
    if valid is not None:
        from_start = from_start * real  # the output at padding is zero
    return ChunkWeights(
        (within * open_).to(dtype),
        from_start[..., None].to(dtype),
        _to_end(log_decay, real, seen, document).to(dtype),
        carry[..., None],
    )


def _count(
    layout: Layout | None, T: int, C: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Which tokens of each chunk are real, how many are up to and with each, and its document.

    All are (b, 1, n, C). Documents are numbered from 0, the one that enters the chunk; None if no
    row has a start.
    """
    valid = layout.valid if layout is not None else None
    starts = layout.starts if layout is not None else None
    pad = -T % C
    if valid is None and pad:  # the last chunk is short: its tail is padding for every row
        real = torch.arange(T + pad, device=device)[None] < T  # 1 N*C
    elif valid is None:
        real = torch.ones(1, C, dtype=torch.bool, device=device)  # one chunk is all
    else:
        real = F.pad(valid, (0, pad))
    real = real.unflatten(1, (-1, C))[:, None]  # b 1 n C
    document = None
    if starts is not None:
        document = F.pad(starts, (0, pad)).unflatten(1, (-1, C))[:, None].cumsum(-1)  # B 1 N C
    return real, real.cumsum(-1), document


def _to_end(log_decay: Tensor, real: Tensor, seen: Tensor, document: Tensor | None) -> Tensor:
    """From each token of a chunk to the state that leaves it, b H n C 1."""
    weights = (log_decay * (seen[..., -1:] - seen)).exp() * real
    if document is not None:
        weights = weights * (document == document[..., -1:])
    return weights[..., None]


def own_state(k: Tensor, v: Tensor, log_decay: Tensor, layout: Layout | None) -> Tensor:
    """S after the last token had nothing been before the first: one product, no outputs."""
    exact, T = state_dtype(k.dtype), k.shape[1]
    kc, vc = (_chunks(x, T)[:, :, 0] for x in (k, v))  # B H T D
    counts = _count(layout, T, T, log_decay.device)
    to_end = _to_end(log_decay.to(exact)[None, :, None, None], *counts)[:, :, 0].to(kc.dtype)
    return _OwnState.apply(kc, vc, to_end).to(exact)


class _OwnState(torch.autograd.Function):
    """`(k * to_end)^T v`; keeps its arguments, which the form that follows keeps as well."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, to_end: Tensor) -> Tensor:
        ctx.save_for_backward(k, v, to_end)
        return (k * to_end).mT @ v

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        k, v, to_end = ctx.saved_tensors
        with torch.autocast(k.device.type, enabled=False):
            return (v @ grads[0].mT).mul_(to_end), (k * to_end) @ grads[0], None


class _Chunkwise(torch.autograd.Function):
    """Chunkwise retention with its gradient written out: it keeps its arguments and chunk states.

    Tensors are (B, H, N, C, D). Forward there are four products over all chunks at once, backward
    nine, of which one computes the scores again; and in each a cheap scan of the states over N.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, state: Tensor, weights: ChunkWeights
    ) -> tuple[Tensor, Tensor]:
        within, from_start, to_end, carry = weights
        scores = (q @ k.mT).mul_(within)
        states, final = _scan((k * to_end).mT @ v, state, carry)
        o = _add_product((q * from_start) @ states, scores, v)
        ctx.save_for_backward(q, k, v, states, *weights)
        return o, final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_o, d_final = grads
        q, k, v, states, within, from_start, to_end, carry = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            d_o_start = d_o * from_start
            d_states, d_state = _scan(q.mT @ d_o_start, d_final, carry, reverse=True)
            d_scores = (d_o @ v.mT).mul_(within)
            d_q = _add_product(d_o_start @ states.mT, d_scores, k)
            d_k = _add_product((v @ d_states.mT).mul_(to_end), d_scores.mT, q)
            scores = (q @ k.mT).mul_(within)
            d_v = _add_product((k * to_end) @ d_states, scores.mT, d_o)
        return d_q, d_k, d_v, d_state, None


def _scan(
    updates: Tensor, state: Tensor, carry: Tensor, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """States entering each chunk, in the updates' dtype, and the state after the last.

    The running state itself stays in its own dtype, float32 or better.
    """
    states = torch.empty_like(updates)  # B H N D_k D_v
    carry = carry.expand(-1, -1, updates.shape[2], -1, -1)
    running = state.clone()
    update = torch.empty_like(running)
    chunks = range(updates.shape[2])
    for n in reversed(chunks) if reverse else chunks:
        states[:, :, n] = running
        update.copy_(updates[:, :, n])  # quicker than sums of two dtypes
        torch.addcmul(update, running, carry[:, :, n], out=running)
    return states, running


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`total + a @ b` in place, the sum inside the matrix product."""
    torch.baddbmm(total.flatten(0, 2), a.flatten(0, 2), b.flatten(0, 2), out=total.flatten(0, 2))
    return total


def _chunks(x: Tensor, C: int) -> Tensor:
    """(B, T, H, D) to (B, H, N, C, D), zeros after T.

    float16 becomes float32: its scores overflow.
    """
    x, pad = x.transpose(1, 2), -x.shape[1] % C
    x = F.pad(x, (0, 0, 0, pad)) if pad else x  # without, pad would copy all the same
    x = x.float() if x.dtype == torch.float16 else x
    return x.contiguous().unflatten(2, (-1, C))


def _tokens(o: Tensor, q: Tensor) -> Tensor:
    """(B, H, N, C, D) to (B, T, H, D) in q's dtype."""
    return o.flatten(2, 3)[:, :, : q.shape[1]].transpose(1, 2).to(q.dtype)


def _or_zeros(state: Tensor | None, q: Tensor, v: Tensor) -> Tensor:
    if state is not None:
        return state
    B, _, H, D_k = q.shape
    return q.new_zeros(B, H, D_k, v.shape[-1], dtype=state_dtype(q.dtype))
