"""Mixed chunk attention: squared ReLU inside a chunk of a document, linear sums of those before."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from retnet.ops.layout import Layout
from retnet.ops.pointwise_attention import relu2
from retnet.types import Form


class MixedChunkState(NamedTuple):
    """What is remembered of a sequence; the same for every length.

    Chunks are counted from the start of a document. The chunk that is open, to which the next token
    belongs, is kept apart from the closed ones; a chunk is closed by its own last token.

    Attributes:
        S: sum of keys times values over closed chunks.
        open_S: the same over the open chunk.
        k: the open chunk's keys for pairs, each in the slot of its place; zeros in later slots.
        v: its values, likewise.
    """

    S: Float[Tensor, "B D_k D_v"]
    open_S: Float[Tensor, "B D_k D_v"]
    k: Float[Tensor, "B C D_k"]
    v: Float[Tensor, "B C D_v"]


def mixed_chunk(
    q: Float[Tensor, "B T 2 D_k"],
    k: Float[Tensor, "B T 2 D_k"],
    v: Float[Tensor, "B T D_v"],
    state: MixedChunkState | None = None,
    *,
    chunk: int,
    layout: Layout | None = None,
    form: Form = "chunkwise",
) -> tuple[Float[Tensor, "B T D_v"], MixedChunkState]:
    """Pairs of tokens of one chunk, and a linear sum over the chunks before it.

    With queries and keys `q1 k1` for pairs and `q2 k2` for sums,
    `o_n = sum_j max(q1_n . k1_j, 0)^2 v_j + sum_i (q2_n . k2_i) v_i`, j over n's chunk up to n and
    i over all chunks before. Tokens of equal `p // chunk` are a chunk, p their position in the
    document.

    Args:
        q: queries for pairs and for sums, scaled by the caller.
        k: keys for both.
        v: values.
        state: after the last token; None at the start of a sequence.
        chunk: C, tokens of a chunk.
        layout: padding, document starts and positions, which say where chunks begin.
        form: `recurrent` takes token by token; the others are one, all chunks side by side.

    Returns:
        o in q's dtype, zero at padding, and the state after the last token, float32 or better.

    Raises:
        ValueError: the layout's rows are spread over ranks.

    Source:
        Hua et al. 2022, arXiv:2202.10447, section 3.2.

    Example:
        >>> import torch
        >>> q, k = torch.ones(2, 1, 5, 2, 1)
        >>> q[:, :, 0] = 2.0  # its square for each token of the chunk, and 1 for each before
        >>> mixed_chunk(q, k, torch.ones(1, 5, 1), chunk=2)[0].flatten().tolist()
        [4.0, 8.0, 6.0, 10.0, 8.0]
    """
    B, T = q.shape[:2]
    layout = layout or Layout.of(B, T, device=q.device)
    if layout.spread is not None:
        raise ValueError(
            "mixed chunk attention passes nothing between ranks, so its rows must not be spread "
            "over several (sequence); run them whole (train.sequence_ranks = 1)"
        )
    state = state or _fresh(q, v, chunk)
    with torch.autocast(q.device.type, enabled=False):
        if form == "recurrent":
            return _recurrent(q, k, v, state, layout)
        return _chunkwise(q, k, v, state, chunk, layout)


def _fresh(q: Tensor, v: Tensor, chunk: int) -> MixedChunkState:
    """Rows that have read nothing."""
    B, exact = len(q), torch.promote_types(q.dtype, torch.float32)
    S = v.new_zeros(B, q.shape[-1], v.shape[-1], dtype=exact)
    k, held = (x.new_zeros(B, chunk, x.shape[-1], dtype=exact) for x in (q, v))
    return MixedChunkState(S, S, k, held)


def _recurrent(
    q: Tensor, k: Tensor, v: Tensor, state: MixedChunkState, layout: Layout
) -> tuple[Tensor, MixedChunkState]:
    outputs = []
    for n in range(q.shape[1]):
        q_n, k_n, v_n = (x[:, n].to(state.S.dtype) for x in (q, k, v))
        o, state = _step(q_n, k_n, v_n, state, layout, n)
        outputs.append(o.to(q.dtype))
    return torch.stack(outputs, 1), state


def _step(
    q: Tensor, k: Tensor, v: Tensor, state: MixedChunkState, layout: Layout, n: int
) -> tuple[Tensor, MixedChunkState]:
    """Token n of the call: the definition."""
    if layout.starts is not None:
        fresh = layout.starts[:, n, None, None]
        state = MixedChunkState(*(torch.where(fresh, 0.0, leaf) for leaf in state))
    S, open_S, keys, values = state
    B, C = keys.shape[:2]
    place = layout.positions[:, n].expand(B) % C
    here = (torch.arange(C, device=place.device) == place[:, None])[..., None]  # B C 1
    keys, values = torch.where(here, k[:, :1], keys), torch.where(here, v[:, None], values)
    weights = relu2(q[:, :1] @ keys.mT)  # B 1 C; nothing where there is no key yet
    o = (weights @ values + q[:, 1:] @ S)[:, 0]
    open_S = open_S + k[:, 1, :, None] * v[:, None]
    closed = (place == C - 1)[:, None, None]
    after = MixedChunkState(
        torch.where(closed, S + open_S, S),
        *(torch.where(closed, 0.0, leaf) for leaf in (open_S, keys, values)),
    )
    if layout.valid is None:
        return o, after
    real = layout.valid[:, n, None, None]
    kept = (torch.where(real, new, old) for new, old in zip(after, state, strict=True))
    return torch.where(real[:, 0], o, 0.0), MixedChunkState(*kept)


def _chunkwise(
    q: Tensor, k: Tensor, v: Tensor, state: MixedChunkState, C: int, layout: Layout
) -> tuple[Tensor, MixedChunkState]:
    """All chunks side by side, (B, N, C, D), and one cheap scan of the sums over N."""
    table = layout.shared(("mixed chunk", C), lambda: _chunks(layout, len(q), C))
    q1, q2 = (table.placed(x) for x in q.unbind(2))
    k1, k2 = table.placed(k[:, :, 0], state.k), table.placed(k[:, :, 1])
    v = table.placed(v, state.v)
    sums = (k2.mT @ v).to(state.S.dtype)  # B N D_k D_v
    entering, owns, before = [], [], state.S
    for index in range(table.num_chunks):
        own = sums[:, index]
        if index == 0:  # the state's chunk goes on, unless another begins with the first token
            own = own + torch.where(table.goes_on[:, None, None], state.open_S, 0.0)
        before = torch.where(table.fresh[:, index, None, None], 0.0, before)
        entering.append(before)
        owns.append(own)
        before = before + own
    S = torch.stack(entering, 1)
    o = relu2(q1 @ k1.mT).tril() @ v + q2 @ S.to(q.dtype)
    return table.back(o), table.after(S, torch.stack(owns, 1), k1, v)


class _Chunks(NamedTuple):
    """Where a call's tokens stand among the chunks of their rows.

    A row's chunks are counted from that of its state's open one, or from its first token's where
    that begins one.

    Attributes:
        slot: of each token, in N chunks of `width` slots; the one after them for padding.
        num_chunks: N, of the row that has the most.
        width: slots of a chunk: C, or fewer if one chunk is all and is not full.
        C: tokens of a full chunk.
        goes_on: whether chunk 0 is the state's open one.
        fresh: whether a document begins with the chunk.
        last: the chunk of each row's last token.
        closed: whether that is full.
    """

    slot: Int[Tensor, "B T"]
    num_chunks: int
    width: int
    C: int
    goes_on: Bool[Tensor, " B"]
    fresh: Bool[Tensor, "B N"]
    last: Int[Tensor, " B"]
    closed: Bool[Tensor, " B"]

    def placed(
        self, x: Float[Tensor, "B T D"], held: Float[Tensor, "B C D"] | None = None
    ) -> Float[Tensor, "B N width D"]:
        """Tokens in their slots, after what the state holds of the open chunk; zero elsewhere."""
        B, _, D = x.shape
        slots = self.num_chunks * self.width
        room = x.new_zeros(B, slots + 1, D)
        if held is not None:
            kept = torch.where(self.goes_on[:, None, None], held[:, : self.width], 0.0)
            room = torch.cat([kept.to(x.dtype), room[:, self.width :]], 1)
        at = self.slot[..., None].expand(-1, -1, D)
        return room.scatter(1, at, x)[:, :slots].unflatten(1, (self.num_chunks, self.width))

    def back(self, o: Float[Tensor, "B N width D"]) -> Float[Tensor, "B T D"]:
        """The reverse; padding is zero."""
        o = F.pad(o.flatten(1, 2), (0, 0, 0, 1))
        return o.gather(1, self.slot[..., None].expand(-1, -1, o.shape[-1]))

    def after(self, S: Tensor, open_S: Tensor, k: Tensor, v: Tensor) -> MixedChunkState:
        """The state after the call, of what enters each chunk and what it holds."""
        row = torch.arange(len(self.last), device=self.last.device)
        S, open_S, k, v = (x[row, self.last] for x in (S, open_S, k, v))
        closed = self.closed[:, None, None]
        k, v = (F.pad(x, (0, 0, 0, self.C - self.width)).to(S.dtype) for x in (k, v))
        return MixedChunkState(
            torch.where(closed, S + open_S, S),
            *(torch.where(closed, 0.0, leaf) for leaf in (open_S, k, v)),
        )


def _chunks(layout: Layout, B: int, C: int) -> _Chunks:
    """The one look at values that is taken, once in a call for all layers."""
    position = layout.positions.expand(B, -1)
    place = position % C
    valid = torch.ones_like(place, dtype=torch.bool) if layout.valid is None else layout.valid
    begins = (place == 0) & valid
    chunk = begins.long().cumsum(1)  # B T
    first = valid & (valid.long().cumsum(1) == 1)  # each row's first real token
    goes_on = ~(begins & first).any(1)
    chunk = chunk - (~goes_on).long()[:, None]
    last = chunk[:, -1].clamp(min=0)
    num_chunks = int(last.max()) + 1 if B else 1
    width = C
    if num_chunks == 1 and B:
        width = int(torch.where(valid, place, layout.next_position[:, None] % C).max()) + 1
    slot = torch.where(valid, chunk * width + place, num_chunks * width)
    fresh = torch.zeros(B, num_chunks, dtype=torch.bool, device=place.device)
    opens = torch.where(begins & (position == 0), chunk, num_chunks)
    fresh = F.pad(fresh, (0, 1)).scatter(1, opens, True)[:, :num_chunks]
    closed = (layout.next_position % C == 0) & (layout.next_position > 0)
    return _Chunks(slot, num_chunks, width, C, goes_on, fresh, last, closed)


__all__ = ["MixedChunkState", "mixed_chunk"]
