"""RWKV-4's channel mixing: a gated squared ReLU that also sees the token before."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.mixers.branch import ALONE, ROOM, Depth, Place
from retnet.mixers.places import TokenLeaves, begin_places, end_places
from retnet.mixers.projection import JointLinear
from retnet.mixers.rwkv import draw_orthogonal, initial_mix
from retnet.ops import Layout
from retnet.ops.gate import gated
from retnet.ops.packed_linear import Weights
from retnet.ops.program import Leaf, Program, Read, Vector
from retnet.ops.token_shift import token_shift
from retnet.types import FormChoice


class RWKVFFNState(NamedTuple):
    """The last token that channel mixing read."""

    shift: Float[Tensor, "B D"]


@dataclass(frozen=True, kw_only=True)
class RWKVFFNConfig:
    """RWKV-4's channel mixing (Peng et al. 2023, arXiv:2305.13048, section 3.1.3).

    Attributes:
        width: F, of the inner layer; 4 d_model in every published model.
        token_shift: mix each token with the one before it; without, it remembers nothing.
    """

    formula: ClassVar[str] = "o = sigmoid(r) ⊙ W_v relu(k)²"
    cost: ClassVar[str] = "O(d²) / O(d²)"
    left_out: ClassVar[str] = ""

    width: int
    token_shift: bool = True

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width ({self.width}) must be at least 1; 4 d_model is usual")

    def build(self, d_model: int) -> "RWKVFFN":
        """Make the layer for a decoder of width `d_model`."""
        return RWKVFFN(self, d_model)


class RWKVFFN(nn.Module):
    """The layer: shift, project, square what is positive, project, gate."""

    def __init__(self, config: RWKVFFNConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.d_model = d_model
        if config.token_shift:
            self.mix_k = nn.Parameter(torch.empty(d_model))
            self.mix_r = nn.Parameter(torch.empty(d_model))
        self.k_proj = nn.Linear(d_model, config.width, bias=False)
        self.r_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(config.width, d_model, bias=False)
        groups = [("k_proj",), ("r_proj",)] if config.token_shift else [("k_proj", "r_proj")]
        self.inward = [JointLinear(*group) for group in groups]
        self.outward = JointLinear("v_proj")
        self._mixes: Tensor | None = None  # once packed
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """As the official code: the output begins at zero, so that `gain` has nothing to scale."""
        if self.config.token_shift:
            with torch.no_grad():
                for mix in (self.mix_k, self.mix_r):
                    mix.copy_(initial_mix(mix, depth))
        draw_orthogonal(self.k_proj.weight)
        for proj in (self.r_proj, self.v_proj):
            nn.init.zeros_(proj.weight)

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """One token; see `Branch`."""
        return self.d_model if self.config.token_shift else 0

    def flops_per_token(self, seq_len: int) -> int:  # noqa: ARG002
        """None but its linear layers'; see `Branch`."""
        return 0

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        for linear in (*self.inward, self.outward):
            linear.pack(self, weights)
        self._mixes = self._step_mixes() if self.config.token_shift else None

    def write_step(self, program: Program, x: Read, stream: Vector, at: Place) -> None:
        """Instructions for one token; see `Compiles`."""
        reads = [x] * 2
        if self.config.token_shift:
            mixes = (self.mix_k, self.mix_r)
            reads = [Read(y) for y in program.shift(x, mixes, ROOM, Leaf(*at, "past"))]
        k, r = (JointLinear(f"{name}_proj").joined(self)[0] for name in "kr")
        inner, gate = program.vector(self.config.width), program.vector(self.d_model)
        program.linear(reads[0], k, None, inner, activation="squared_relu")
        program.linear(reads[1], r, None, gate, activation="sigmoid")
        v = program.vector(self.d_model)
        program.linear(Read(inner), *self.outward.joined(self), v)
        program.copy(Read(v, gate=gate), stream, add=True)

    def open_leaves(self, state: RWKVFFNState | None, layout: Layout) -> TokenLeaves | None:  # noqa: ARG002
        """Begin steps of a program; see `CompilesState`."""
        return None if state is None else TokenLeaves(begin_places(state.shift))

    def next_leaves(self, leaves: TokenLeaves | None, layout: Layout) -> TokenLeaves | None:  # noqa: ARG002
        """Room for the tokens after these; see `CompilesState`."""
        return None if leaves is None else TokenLeaves(torch.empty_like(leaves.past))

    def close_leaves(self, leaves: TokenLeaves | None, used: int) -> RWKVFFNState | None:
        """The plain state again; see `CompilesState`."""
        return None if leaves is None else RWKVFFNState(end_places(leaves.past, used))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: RWKVFFNState | None,
        layout: Layout,
        form: FormChoice = "auto",  # noqa: ARG002  (it has one form)
    ) -> tuple[Float[Tensor, "B T D"], RWKVFFNState | None]:
        """Mix the channels of each token; see `Branch` for the contract."""
        if self.config.token_shift and state is not None and _is_step(x, layout):
            return self._step(x[:, 0], state)
        if self.config.token_shift:
            last = None if state is None else state.shift
            mixed, shift = token_shift(x, last, layout, self.mix_k, self.mix_r)
            k, r = (joint(self, y)[0] for joint, y in zip(self.inward, mixed, strict=True))
            state = RWKVFFNState(shift)
        else:
            k, r = self.inward[0](self, x)
        v = self.outward(self, _squared_relu(k))[0]
        return gated(r, v, "sigmoid"), state

    def _step(self, x: Tensor, state: RWKVFFNState) -> tuple[Tensor, RWKVFFNState]:
        """One token, in as few calls as there are."""
        mixes = self._step_mixes() if self._mixes is None else self._mixes
        mixed = torch.lerp(state.shift.to(x.dtype), x, mixes.to(x.dtype)).unbind()
        k, r = (joint(self, y)[0] for joint, y in zip(self.inward, mixed, strict=True))
        v = self.outward(self, _squared_relu(k))[0]
        return r.sigmoid().mul_(v)[:, None], RWKVFFNState(x.to(state.shift.dtype))

    def _step_mixes(self) -> Tensor:
        """Mixing weights as (2, 1, D)."""
        return torch.stack((self.mix_k, self.mix_r))[:, None].detach()


def _is_step(x: Tensor, layout: Layout) -> bool:
    """Whether each row has one real token that goes on, and nobody asks for gradients."""
    plain = layout.valid is None and layout.starts is None
    return x.shape[1] == 1 and plain and not torch.is_grad_enabled()


def _squared_relu(k: Tensor) -> Tensor:
    """`relu(k)^2`; without gradients in the memory of k, which is the widest tensor of a layer."""
    return F.relu(k).square() if torch.is_grad_enabled() else k.relu_().square_()
