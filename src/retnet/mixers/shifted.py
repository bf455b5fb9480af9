"""Branches behind a token shift, which also see which token came before."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.branch import ALONE, ROOM, Depth, Place
from retnet.mixers.channel import GLUConfig
from retnet.mixers.places import TokenLeaves, begin_places, end_places
from retnet.mixers.retention import RetentionConfig, RetentionState
from retnet.mixers.retention_program import ShiftedLeaves
from retnet.mixers.retention_step import OpenedRetention
from retnet.ops import Layout
from retnet.ops.gate import Activation
from retnet.ops.packed_linear import Weights
from retnet.ops.program import Leaf, Program, Read, Vector
from retnet.ops.token_shift import token_shift
from retnet.types import FormChoice


class ShiftedRetentionState(NamedTuple):
    """What retention remembers, and the last token."""

    S: Float[Tensor, "B H D_k D_v"]
    shift: Float[Tensor, "B D"]


class OpenedShiftedRetention(NamedTuple):
    """The same for single steps."""

    retention: OpenedRetention
    shift: Float[Tensor, "B D"]


@dataclass(frozen=True, kw_only=True)
class ShiftedRetentionConfig:
    """Retention behind RWKV's token shift (Peng et al. 2023, arXiv:2305.13048, equation 11).

    One retention layer matches what a token is with what others were; to find what followed them,
    it needs keys that tell of the token before. The shift gives it these for D parameters.

    Attributes:
        retention: of the layer behind the shift.
    """

    formula: ClassVar[str] = "y_t = retention(m ⊙ x_t + (1 - m) ⊙ x_(t-1))"
    cost: ClassVar[str] = "O(D (C + D_k)) / O(D D_k)"
    left_out: ClassVar[str] = "mixtures of their own for queries, keys, values and gate"

    retention: RetentionConfig

    def build(self, d_model: int) -> "ShiftedRetention":
        """Make the layer for a decoder of width `d_model`."""
        return ShiftedRetention(self, d_model)


class ShiftedRetention(nn.Module):
    """The layer: shift, retain."""

    of_heads: ClassVar[tuple[str, ...]] = ("S",)

    def __init__(self, config: ShiftedRetentionConfig, d_model: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.empty(d_model))
        self.retention = config.retention.build(d_model)
        self.log_decays = self.retention.log_decays
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:
        """The current token's part rises from 0 to 1 over the channels."""
        _rise(self.mix)
        self.retention.reset_parameters(gain, depth)

    def flops_per_token(self, seq_len: int) -> int:
        """Those of retention; see `Branch`."""
        return self.retention.flops_per_token(seq_len)

    def state_size(self, tokens: int) -> int:
        """That of retention, and a token; see `Branch`."""
        return self.retention.state_size(tokens) + len(self.mix)

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.retention.pack(weights)

    def open_state(self, state: ShiftedRetentionState, tokens: int) -> OpenedShiftedRetention:
        """Begin single steps; see `Steps`."""
        opened = self.retention.open_state(RetentionState(state.S), tokens)
        return OpenedShiftedRetention(opened, state.shift)

    def close_state(self, opened: OpenedShiftedRetention) -> ShiftedRetentionState:
        """The plain state again; see `Steps`."""
        return ShiftedRetentionState(self.retention.close_state(opened.retention).S, opened.shift)

    def write_step(self, program: Program, x: Read, stream: Vector, at: Place) -> None:
        """Instructions for one token; see `Compiles`."""
        [mixed] = program.shift(x, [self.mix], ROOM, Leaf(*at, "past"))
        self.retention.write_step(program, Read(mixed), stream, at)

    def open_leaves(self, state: ShiftedRetentionState, layout: Layout) -> ShiftedLeaves:
        """Begin steps of a program; see `CompilesState`."""
        leaves = self.retention.open_leaves(RetentionState(state.S), layout)
        return ShiftedLeaves(*leaves, begin_places(state.shift))

    def next_leaves(self, leaves: ShiftedLeaves, layout: Layout) -> ShiftedLeaves:
        """Room for the tokens after these; see `CompilesState`."""
        after = self.retention.next_leaves(leaves.retention, layout)
        return ShiftedLeaves(*after, torch.empty_like(leaves.past))

    def close_leaves(self, leaves: ShiftedLeaves, used: int) -> ShiftedRetentionState:
        """The plain state again; see `CompilesState`."""
        S = self.retention.close_leaves(leaves.retention, used).S
        return ShiftedRetentionState(S, end_places(leaves.past, used))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: ShiftedRetentionState | OpenedShiftedRetention | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], ShiftedRetentionState | OpenedShiftedRetention]:
        """Mix T tokens; see `Branch` for the contract."""
        last = None if state is None else state.shift
        (mixed,), shift = token_shift(x, last, layout, self.mix)
        if isinstance(state, OpenedShiftedRetention):
            y, opened = self.retention(mixed, state.retention, layout)
            return y, OpenedShiftedRetention(opened, shift)
        before = None if state is None else RetentionState(state.S)
        y, after = self.retention(mixed, before, layout, form)
        return y, ShiftedRetentionState(after.S, shift)


class ShiftedGLUState(NamedTuple):
    """The last token that the unit read."""

    shift: Float[Tensor, "B D"]


@dataclass(frozen=True, kw_only=True)
class ShiftedGLUConfig:
    """Gated linear unit behind RWKV's token shift (Peng et al. 2023, arXiv:2305.13048).

    A channel mixer that also sees the token before, as RWKV's does, for D parameters.

    Attributes:
        width: of the inner layer.
        activation: of the gate.
        bias: whether the three linear layers have biases.
    """

    formula: ClassVar[str] = "y_t = GLU(m ⊙ x_t + (1 - m) ⊙ x_(t-1))"
    cost: ClassVar[str] = "O(D F) / O(D F)"

    width: int
    activation: Activation = "swish"
    bias: bool = False

    def build(self, d_model: int) -> "ShiftedGLU":
        """Make the layer for a decoder of width `d_model`."""
        return ShiftedGLU(self, d_model)


class ShiftedGLU(nn.Module):
    """The layer: shift, then the gated linear unit."""

    def __init__(self, config: ShiftedGLUConfig, d_model: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.empty(d_model))
        glu = GLUConfig(width=config.width, activation=config.activation, bias=config.bias)
        self.glu = glu.build(d_model)
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:
        """The current token's part rises from 0 to 1 over the channels."""
        _rise(self.mix)
        self.glu.reset_parameters(gain, depth)

    def flops_per_token(self, seq_len: int) -> int:
        """Those of the unit; see `Branch`."""
        return self.glu.flops_per_token(seq_len)

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """One token; see `Branch`."""
        return len(self.mix)

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.glu.pack(weights)

    def write_step(self, program: Program, x: Read, stream: Vector, at: Place) -> None:
        """Instructions for one token; see `Compiles`."""
        [mixed] = program.shift(x, [self.mix], ROOM, Leaf(*at, "past"))
        self.glu.write_step(program, Read(mixed), stream, at)

    def open_leaves(self, state: ShiftedGLUState, layout: Layout) -> TokenLeaves:  # noqa: ARG002
        """Begin steps of a program; see `CompilesState`."""
        return TokenLeaves(begin_places(state.shift))

    def next_leaves(self, leaves: TokenLeaves, layout: Layout) -> TokenLeaves:  # noqa: ARG002
        """Room for the tokens after these; see `CompilesState`."""
        return TokenLeaves(torch.empty_like(leaves.past))

    def close_leaves(self, leaves: TokenLeaves, used: int) -> ShiftedGLUState:
        """The plain state again; see `CompilesState`."""
        return ShiftedGLUState(end_places(leaves.past, used))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: ShiftedGLUState | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], ShiftedGLUState]:
        """Mix the channels of each token and the one before; see `Branch` for the contract."""
        (mixed,), shift = token_shift(x, None if state is None else state.shift, layout, self.mix)
        y, _ = self.glu(mixed, None, layout, form)
        return y, ShiftedGLUState(shift)


@torch.no_grad()
def _rise(mix: Tensor) -> None:
    """From 0 at the first channel to nearly 1 at the last, in place."""
    mix.copy_(torch.arange(len(mix), device=mix.device) / len(mix))
