"""One token of retention that takes means as a program's instructions.

A head's sum of weights is the sum of one more value, which is always 1: no weights make it, and a
bias of one. The mean is o divided by its last number, of which nothing goes out.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from retnet.mixers.branch import ROOM, Place
from retnet.mixers.places import begin_places, end_places
from retnet.mixers.projection import JointLinear
from retnet.mixers.retention_program import (
    RetentionLeaves,
    ShiftedLeaves,
    leaves_after,
    leaves_of,
    settled,
)
from retnet.ops import Layout
from retnet.ops.linear_attention import LinearAttentionState
from retnet.ops.program import Leaf, Norm, Program, Read, Turns, Vector

if TYPE_CHECKING:
    from retnet.mixers.mean_retention import MeanRetention


def write_mean_retention(
    mixer: "MeanRetention", program: Program, x: Read, stream: Vector, at: Place
) -> None:
    """Shift, project, average, gate, project."""
    H, D_k, D_v = mixer.config.num_heads, mixer.D_k, mixer.D_v
    keys, values = H * D_k, H * (D_v + 1)
    leaf = {name: Leaf(*at, name) for name in ShiftedLeaves._fields}
    reads = [x] * 4
    if mixer.config.token_shift:
        mixes = (mixer.mix_q, mixer.mix_k, mixer.mix_v, mixer.mix_g)
        reads = [Read(mixed) for mixed in program.shift(x, mixes, ROOM, leaf["past"])]
    q, k, v, g = (JointLinear(f"{name}_proj").joined(mixer)[0] for name in "qkvg")
    one = F.pad(torch.zeros(H, D_v), (0, 1), value=1.0).flatten()
    qkv, gate = program.vector(2 * keys + values), program.vector(values)
    program.linear(reads[0], q, None, qkv.cut(0, keys), activation="exp")
    program.linear(reads[1], k, None, qkv.cut(keys, keys), activation="exp")
    program.linear(reads[2], _with_one(v.mT, H).mT, one, qkv.cut(2 * keys, values))
    program.linear(reads[3], _with_one(g.mT, H).mT, None, gate, activation="sigmoid")
    o = program.retention(
        qkv,
        (H, D_k, D_v + 1),
        mixer.log_decays,
        ROOM,
        (leaf["S"], leaf["k"], leaf["v"]),
        Turns(leaf["cos"], leaf["sin"], rotate=False, interleaved=False),
    )
    out = _with_one(mixer.outward.joined(mixer)[0], H)
    program.linear(Read(o, Norm("last", 0.0, groups=H), gate), out, None, stream, add=True)


def open_means(
    sums: LinearAttentionState, shift: Float[Tensor, "B D"] | None, layout: Layout
) -> ShiftedLeaves | RetentionLeaves:
    """Leaves without a token since these sums, and this token if there is a shift."""
    S = torch.cat([sums.S, sums.z[..., None]], -1)
    leaves = leaves_of(S, *_ones(S, layout))
    return leaves if shift is None else ShiftedLeaves(*leaves, begin_places(shift))


def next_means(
    leaves: ShiftedLeaves | RetentionLeaves, layout: Layout
) -> ShiftedLeaves | RetentionLeaves:
    """Leaves for the tokens after these."""
    if isinstance(leaves, ShiftedLeaves):
        after = leaves_after(leaves.retention, *_ones(leaves.S, layout))
        return ShiftedLeaves(*after, torch.empty_like(leaves.past))
    return leaves_after(leaves, *_ones(leaves.S, layout))


def close_means(
    mixer: "MeanRetention", leaves: ShiftedLeaves | RetentionLeaves, used: int
) -> tuple[LinearAttentionState, Float[Tensor, "B D"] | None]:
    """The sums after the first `used` tokens, and the last one for the shift."""
    shifted = isinstance(leaves, ShiftedLeaves)
    own = leaves.retention if shifted else leaves
    S = settled(own, mixer.D_k, mixer.D_v + 1, mixer.log_decays, used)
    sums = LinearAttentionState(S[..., :-1].contiguous(), S[..., -1].contiguous())
    return sums, end_places(leaves.past, used) if shifted else None


def _with_one(weight: Float[Tensor, "D heads_and_values"], H: int) -> Tensor:
    """Zeros after each head's columns."""
    return F.pad(weight.unflatten(1, (H, -1)), (0, 1)).flatten(1)


def _ones(S: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Tables by which nothing turns, once in a call for all layers."""
    B, H = S.shape[:2]
    ones = layout.shared(("ones", H), lambda: S.new_ones(B, ROOM, 2, H, 1, dtype=torch.float32))
    return ones, ones
