"""One token of gated retention as a program's instructions; `retention_step` is it in calls."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.mixers.branch import ROOM, CannotCompile, Place
from retnet.mixers.retention_step import turning_tables
from retnet.ops import Layout
from retnet.ops.program import Leaf, Norm, Program, Read, Turns, Vector, tiled, untiled
from retnet.ops.retention.buffered import Buffer, settle

if TYPE_CHECKING:
    from retnet.mixers.retention import Retention


class RetentionLeaves(NamedTuple):
    """A state, room for the tokens since it was written, and what turns their queries and keys.

    Widths are padded with zeros to whole tiles.
    """

    S: Float[Tensor, "B H tiles pieces rows lanes"]
    k: Float[Tensor, "B H places padded_k"]
    v: Float[Tensor, "B H places padded_v"]
    cos: Float[Tensor, "B places 2 H pairs"]
    sin: Float[Tensor, "B places 2 H pairs"]


class ShiftedLeaves(NamedTuple):
    """`RetentionLeaves`, and what a token shift before it keeps."""

    S: Float[Tensor, "B H tiles pieces rows lanes"]
    k: Float[Tensor, "B H places padded_k"]
    v: Float[Tensor, "B H places padded_v"]
    cos: Float[Tensor, "B places 2 H pairs"]
    sin: Float[Tensor, "B places 2 H pairs"]
    past: Float[Tensor, "B places_and_one D"]

    @property
    def retention(self) -> RetentionLeaves:
        """All but the tokens."""
        return RetentionLeaves(*self[:-1])


def write_retention(
    mixer: "Retention", program: Program, x: Read, stream: Vector, at: Place
) -> None:
    """Project, rotate, mix, normalise, gate, project.

    Raises:
        CannotCompile: the state begins with a learned one.
    """
    config = mixer.config
    if mixer.initial_S is not None:
        raise CannotCompile("initial_state = true has no instruction")
    H, keys, values = config.num_heads, mixer.q_proj.out_features, mixer.v_proj.out_features
    weight, bias = mixer.inward.joined(mixer)
    inward = program.vector(len(weight))
    before_gate = 2 * keys + values
    gated = (before_gate, len(weight))
    program.linear(
        x, weight, bias, inward, activation="swish" if config.gate else None, active=gated
    )
    leaf = {name: Leaf(*at, name) for name in RetentionLeaves._fields}
    o = program.retention(
        inward.cut(0, before_gate),
        (H, mixer.D_k, mixer.D_v),
        mixer.log_decays,
        ROOM,
        (leaf["S"], leaf["k"], leaf["v"]),
        Turns(leaf["cos"], leaf["sin"], config.theta != "none", config.pairs == "interleaved"),
    )
    norm = Norm(config.head_norm, config.norm_eps, mixer.head_norm_weight, groups=H)
    gate = inward.cut(before_gate, values) if config.gate else None
    weight, bias = mixer.outward.joined(mixer)
    program.linear(Read(o, norm, gate), weight, bias, stream, add=True)


def open_retention(
    mixer: "Retention", S: Float[Tensor, "B H D_k D_v"], layout: Layout
) -> RetentionLeaves:
    """Leaves without a token since S."""
    return leaves_of(S, *_turning(mixer, layout, len(S)))


def next_retention(mixer: "Retention", leaves: RetentionLeaves, layout: Layout) -> RetentionLeaves:
    """Leaves for the tokens after these, into whose S the program will write."""
    return leaves_after(leaves, *_turning(mixer, layout, len(leaves.S)))


def close_retention(
    mixer: "Retention", leaves: RetentionLeaves, used: int
) -> Float[Tensor, "B H D_k D_v"]:
    """S after the first `used` tokens."""
    return settled(leaves, mixer.D_k, mixer.D_v, mixer.log_decays, used)


def leaves_of(S: Float[Tensor, "B H D_k D_v"], cos: Tensor, sin: Tensor) -> RetentionLeaves:
    """Leaves without a token since S, by the tables of `RetentionLeaves`."""
    return _around(tiled(S.float().mT), cos, sin)


def leaves_after(leaves: RetentionLeaves, cos: Tensor, sin: Tensor) -> RetentionLeaves:
    """Leaves for the tokens after these, into whose S the program will write."""
    return _around(torch.empty_like(leaves.S), cos, sin)


def settled(
    leaves: RetentionLeaves, D_k: int, D_v: int, log_decays: tuple[float, ...], used: int
) -> Float[Tensor, "B H D_k D_v"]:
    """S after the first `used` tokens."""
    S = untiled(leaves.S, D_v, D_k).mT.contiguous()
    k, v = leaves.k[:, :, :used, :D_k], leaves.v[:, :, :used, :D_v]
    return settle(Buffer(S, k, v), log_decays)


def _around(S: Tensor, cos: Tensor, sin: Tensor) -> RetentionLeaves:
    B, H, tiles, pieces, rows, lanes = S.shape
    k, v = (S.new_empty(B, H, ROOM, width) for width in (pieces * lanes, tiles * rows))
    return RetentionLeaves(S, k, v, cos, sin)


def _turning(mixer: "Retention", layout: Layout, batch: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the next tokens, once in a call for all layers."""

    def tables() -> tuple[Tensor, ...]:
        found = (table.float() for table in turning_tables(mixer, layout))
        return tuple(table.expand(batch, *table.shape[1:]).contiguous() for table in found)

    cos, sin = layout.shared(("retention_program", mixer.config, mixer.D_k), tables)
    return cos, sin
