"""A cache with room for tokens to come, written in place: one token at a time, without copies."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from retnet.ops.attention.rule import PLAIN, Rule
from retnet.ops.attention.states import NEAR, AttentionState
from retnet.ops.layout import Layout

ROUND_TO = 64
"""Slots are a multiple of this."""


class StaticCache(NamedTuple):
    """An `AttentionState` with unused slots at the end, for one owner.

    A step returns a new one that shares keys and values with the one before it: both can still be
    closed, but only the newest may be stepped. Keys and values may lie in memory as
    (B, H_kv, D, slots), by channel, or as their shape says.

    Attributes:
        k: a row's token of position p is in slot p.
        v: likewise.
        length: tokens of each row that count.
    """

    k: Float[Tensor, "B H_kv slots D_k"]
    v: Float[Tensor, "B H_kv slots D_v"]
    length: Int[Tensor, " B"]

    @classmethod
    def open(cls, state: AttentionState, tokens: int, queries_per_key: int = 1) -> "StaticCache":
        """Copy a state and make room.

        On a CPU in float32, plain products read keys and values by channel 1.6 times as fast as
        PyTorch's attention reads them otherwise. In half precision, and where queries share keys,
        the latter is the fastest.

        Args:
            state: it is not modified.
            tokens: that each row may read at most.
            queries_per_key: heads of queries that read the same keys.
        """
        if tokens < 0:
            raise ValueError(f"tokens ({tokens}) must not be negative")
        B, _, used, _ = state.k.shape
        slots = -(-(used + tokens) // ROUND_TO) * ROUND_TO
        wide = state.k.dtype in (torch.float32, torch.float64)
        by_channel = state.k.device.type == "cpu" and wide and queries_per_key == 1
        length = torch.full((B,), used, device=state.k.device)
        k, v = (_with_room(x, slots, by_channel) for x in state)
        return cls(k, v, length)

    def close(self) -> AttentionState:
        """The plain state, which later steps do not change; a view where all rows are as long."""
        if len(self.length) == 0:
            return AttentionState(self.k[:, :, :0], self.v[:, :, :0])
        shortest, longest = int(self.length.min()), int(self.length.max())
        k, v = self.k[:, :, :longest], self.v[:, :, :longest]
        if shortest < longest:  # later tokens of the shorter rows are in slots of the view
            unused = torch.arange(longest, device=k.device) >= self.length[:, None]
            k, v = (x.masked_fill(unused[:, None, :, None], 0) for x in (k, v))
        return AttentionState(k, v)

    def step(
        self,
        q: Float[Tensor, "B T H D_k"],
        k: Float[Tensor, "B T H_kv D_k"],
        v: Float[Tensor, "B T H_kv D_v"],
        layout: Layout,
        rule: Rule = PLAIN,
    ) -> tuple[Float[Tensor, "B T H D_v"], "StaticCache"]:
        """Write one token of every row and attend to all that is there, as `attention` does.

        A step that was interrupted may be done again. On a GPU all slots are read, and nothing on
        the host depends on positions: a CUDA graph can hold it.

        Raises:
            ValueError: the call is none of a decoding step, or the cache is full.
        """
        assert rule.by_kernel
        assert rule.turn is None
        masked = layout.valid is not None or layout.starts is not None
        if q.shape[1] != 1 or q.requires_grad or masked:
            raise ValueError(
                "an opened state takes one token of each row, without masks and gradients: close "
                "it for anything else"
            )
        if k.dtype != self.k.dtype:
            raise ValueError(
                f"the opened state has dtype {self.k.dtype} and k {k.dtype}; read a text in one"
            )
        B, _, H, D_k = q.shape
        _, H_kv, slots, _ = self.k.shape
        filled, slot, mask = layout.shared(
            ("attention slot", slots), lambda: _places(layout, B, slots)
        )
        rows = slice(None) if isinstance(slot, int) else torch.arange(B, device=q.device)
        self.k[rows, :, slot] = k[:, 0]
        self.v[rows, :, slot] = v[:, 0]
        if rule.bias is not None:
            mask = _biased(rule, layout, filled, mask, q)
            mask = mask.view(len(mask), H_kv, -1, filled)
        q = q.reshape(B, H_kv, H // H_kv, D_k)  # heads that share keys become queries of one head
        by_channel = self.k.stride(2) == 1
        mix = _products if by_channel else F.scaled_dot_product_attention
        k, v = self.k[:, :, :filled], self.v[:, :, :filled]
        o = mix(q, k, v, mask, scale=rule.scale)
        return o.reshape(B, 1, H, v.shape[-1]), self._replace(length=layout.next_position)


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.mT
    if mask is not None:
        scores = (
            scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -torch.inf)
        )
    return scores.softmax(-1) @ v


def _biased(rule: Rule, layout: Layout, filled: int, mask: Tensor | None, q: Tensor) -> Tensor:
    """Bias of the slots that each row sees, and -inf for the others, (rows, H, 1, filled)."""

    def build() -> Tensor:
        at = torch.arange(filled, device=q.device)
        distance = (layout.positions[:, :1, None] - at).clamp(min=0)  # rows 1 filled
        assert rule.bias is not None
        wide = torch.promote_types(q.dtype, torch.float32)
        bias = rule.bias(distance.to(wide)).to(q.dtype)
        return bias if mask is None else bias.masked_fill(~mask, -torch.inf)

    if rule.bias_name is None:
        return build()
    return layout.shared(("attention step bias", rule.bias_name, filled, q.dtype), build)


def _places(layout: Layout, B: int, slots: int) -> tuple[int, int | Tensor, Tensor | None]:
    """Slots to read, the slot of each row's token, and which of those read a row may see."""
    slot = layout.positions[:, 0].expand(B)
    filled = slots
    if slot.device.type in NEAR:
        first, last = int(slot.min()), int(slot.max())
        if last >= slots:
            raise ValueError(f"an opened state has {slots} slots, too few for token {last + 1}")
        if first == last:
            return last + 1, last, None
        filled = last + 1
    seen = torch.arange(filled, device=slot.device) <= slot[:, None]
    return filled, slot, seen[:, None, None]


def _with_room(x: Tensor, slots: int, by_channel: bool) -> Tensor:
    """Copy x (B, H_kv, tokens, D) into the first of `slots` slots; the others are zero."""
    B, H_kv, used, D = x.shape
    room = x.new_zeros(B, H_kv, D, slots).mT if by_channel else x.new_zeros(B, H_kv, slots, D)
    room[:, :, :used] = x
    return room
