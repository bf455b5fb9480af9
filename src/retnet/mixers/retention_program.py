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
    return _around(mixer, tiled(S.float().mT), layout)


def next_retention(mixer: "Retention", leaves: RetentionLeaves, layout: Layout) -> RetentionLeaves:
    """Leaves for the tokens after these, into whose S the program will write."""
    return _around(mixer, torch.empty_like(leaves.S), layout)


def close_retention(
    mixer: "Retention", leaves: RetentionLeaves, used: int
) -> Float[Tensor, "B H D_k D_v"]:
    """S after the first `used` tokens."""
    S = untiled(leaves.S, mixer.D_v, mixer.D_k).mT.contiguous()
    k, v = leaves.k[:, :, :used, : mixer.D_k], leaves.v[:, :, :used, : mixer.D_v]
    return settle(Buffer(S, k, v), mixer.log_decays)


def _around(mixer: "Retention", S: Tensor, layout: Layout) -> RetentionLeaves:
    B, H, tiles, pieces, rows, lanes = S.shape
    cos, sin = layout.shared(
        ("retention_program", mixer.config, mixer.D_k), lambda: _tables(mixer, layout, B)
    )
    k, v = (S.new_empty(B, H, ROOM, width) for width in (pieces * lanes, tiles * rows))
    return RetentionLeaves(S, k, v, cos, sin)


def _tables(mixer: "Retention", layout: Layout, batch: int) -> tuple[Tensor, ...]:
    tables = (table.float() for table in turning_tables(mixer, layout))
    return tuple(table.expand(batch, *table.shape[1:]).contiguous() for table in tables)
