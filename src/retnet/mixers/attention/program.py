"""One token of softmax attention as a program's instructions, over a cache with room."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retnet.mixers.attention.position import NoPosition, Rotary
from retnet.mixers.branch import ROOM, CannotCompile, Place
from retnet.ops import Layout
from retnet.ops.attention import AttentionState
from retnet.ops.program import CacheLeaves, Leaf, Program, Read, Turns, Vector

if TYPE_CHECKING:
    from retnet.mixers.attention.layer import Attention

SPARE = 8
"""A cache that is too small becomes larger by one part in so many, and by ROUND_TO slots."""
ROUND_TO = 128


class AttentionLeaves(NamedTuple):
    """A cache with unused slots at the end, and what turns the next tokens' queries and keys.

    Like `StaticCache`, leaves share keys and values with those before them: a later token is
    written to a slot that these do not count.
    """

    k: Float[Tensor, "B H_kv slots D"]
    v: Float[Tensor, "B H_kv slots D"]
    begin: Int[Tensor, " B"]
    cos: Float[Tensor, "B places pairs"]
    sin: Float[Tensor, "B places pairs"]


def write_attention(
    mixer: "Attention", program: Program, x: Read, stream: Vector, at: Place
) -> None:
    """Project, rotate, attend, project.

    Raises:
        CannotCompile: scores or weights are not the plain ones.
    """
    config = mixer.config
    for name, plain in (("window", None), ("scores", "scaled"), ("log_n", "none"), ("urpe", None)):
        if getattr(config, name) != plain:
            raise CannotCompile(
                f"attention with {name} = {getattr(config, name)} has no instruction"
            )
    if config.weights != "softmax" or type(mixer.position) not in (NoPosition, Rotary):
        raise CannotCompile(
            f"attention with weights {config.weights} and position {config.position}, with what "
            "changes them, has no instruction"
        )
    H, H_kv, D = config.num_heads, config.kv_heads, mixer.D_k
    qkv = program.vector((H + 2 * H_kv) * D)
    start = 0
    for joint in mixer.inward:
        weight, bias = joint.joined(mixer)
        program.linear(x, weight, bias, qkv.cut(start, len(weight)))
        start += len(weight)
    leaf = {name: Leaf(*at, name) for name in AttentionLeaves._fields}
    turned = isinstance(mixer.position, Rotary)
    o = program.attention(
        qkv,
        (H, H_kv, D),
        D**-0.5,
        ROOM,
        CacheLeaves(leaf["k"], leaf["v"], leaf["begin"]),
        Turns(leaf["cos"], leaf["sin"], turned, config.pairs == "interleaved"),
        _cache_dtype(mixer),
    )
    program.linear(Read(o), *mixer.outward.joined(mixer), stream, add=True)


def open_attention(mixer: "Attention", state: AttentionState, layout: Layout) -> AttentionLeaves:
    """A copy of the cache with room for the next tokens."""
    k, v = (_with_room(x.to(_cache_dtype(mixer)), layout) for x in state)
    return AttentionLeaves(k, v, layout.positions[:, 0].clone(), *_turning(mixer, layout))


def next_attention(mixer: "Attention", leaves: AttentionLeaves, layout: Layout) -> AttentionLeaves:
    """The same cache, or a larger copy where it has no room."""
    begin = layout.positions[:, 0].clone()
    k, v = leaves.k, leaves.v
    if _need(layout) > k.shape[2]:
        k, v = (_with_room(x, layout) for x in (k, v))
    return AttentionLeaves(k, v, begin, *_turning(mixer, layout))


def close_attention(mixer: "Attention", leaves: AttentionLeaves, used: int) -> AttentionState:
    """What there is after the first `used` tokens, zeros where rows are shorter.

    A view where all rows are as long, to which nothing is written any more.
    """
    length = leaves.begin + used
    longest = int(length.max()) if len(length) else 0
    k, v = leaves.k[:, :, :longest], leaves.v[:, :, :longest]
    unused = torch.arange(longest) >= length[:, None]
    if unused.any():  # later tokens of the shorter rows are in slots of the view
        k, v = (x.masked_fill(unused[:, None, :, None], 0) for x in (k, v))
    dtype = mixer.k_proj.weight.dtype
    return AttentionState(k.to(dtype), v.to(dtype))


def _cache_dtype(mixer: "Attention") -> torch.dtype:
    """That of a model in bfloat16, else float32."""
    dtype = mixer.k_proj.weight.dtype
    return dtype if dtype == torch.bfloat16 else torch.float32


def _need(layout: Layout) -> int:
    """Slots for all rows' next tokens."""
    return int(layout.positions.max()) + ROOM if layout.positions.numel() else ROOM


def _with_room(x: Float[Tensor, "B H used D"], layout: Layout) -> Float[Tensor, "B H slots D"]:
    B, H, used, D = x.shape
    need = max(_need(layout), used)
    slots = need + need // SPARE
    roomy = x.new_empty(B, H, slots + -slots % ROUND_TO, D)
    roomy[:, :, :used] = x
    return roomy


def _turning(mixer: "Attention", layout: Layout) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the next tokens, once in a call for all layers."""
    rotary, B = mixer.position, len(layout.positions)
    if not isinstance(rotary, Rotary):
        nothing = torch.empty(B, ROOM, 0)
        return nothing, nothing

    def tables() -> tuple[Tensor, ...]:
        found = rotary.tables(layout.positions + torch.arange(ROOM), torch.float32)
        return tuple(table[:, :, 0].expand(B, -1, -1).contiguous() for table in found)

    config = mixer.config
    key = "attention program", config.scaling, config.rope_base, mixer.D_k
    cos, sin = layout.shared(key, tables)
    return cos, sin
