"""RWKV-4's time mixing: parameters around `retnet.ops.wkv`."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.branch import ALONE, ROOM, Depth, Place
from retnet.mixers.places import begin_places, end_places
from retnet.mixers.precise import PreciseParameters
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout, wkv
from retnet.ops.gate import gated
from retnet.ops.packed_linear import Weights
from retnet.ops.program import Leaf, Program, Read, Vector
from retnet.ops.token_shift import token_shift
from retnet.ops.wkv import NOTHING, WKVState, step
from retnet.types import FormChoice


class RWKVState(NamedTuple):
    """What time mixing remembers: the last token, and WKV's state (see `WKVState`)."""

    shift: Float[Tensor, "B D"]
    mean: Float[Tensor, "B A"]
    log_mass: Float[Tensor, "B A"]
    seen: Float[Tensor, " B"]


class OpenedRWKV(NamedTuple):
    """The same for single steps: of a row that has read nothing, log_mass is that of nothing."""

    shift: Float[Tensor, "B _"]
    mean: Float[Tensor, "B A"]
    log_mass: Float[Tensor, "B A"]


class RWKVLeaves(NamedTuple):
    """The same while a program steps it: tokens, and means and masses."""

    past: Float[Tensor, "B places _"]
    average: Float[Tensor, "B places 2A"]


@dataclass(frozen=True, kw_only=True)
class RWKVConfig:
    """RWKV-4's time mixing (Peng et al. 2023, arXiv:2305.13048, section 3.1).

    Attributes:
        width: A, the channels that are averaged; None means d_model.
        token_shift: mix each token with the one before it; without, every token is read alone.
    """

    formula: ClassVar[str] = (
        "o = W_o(sigmoid(r) ⊙ wkv), "
        "wkv_t = (Σ_{i<t} e^((t-1-i)w + k_i) v_i + e^(u+k_t) v_t) / (the same of 1), w = -e^d"
    )
    cost: ClassVar[str] = "O(d) / O(d)"
    left_out: ClassVar[str] = "versions 5 to 7, whose states are matrices"

    width: int | None = None
    token_shift: bool = True

    def __post_init__(self) -> None:
        if self.width is not None and self.width < 1:
            raise ValueError(
                f"width ({self.width}) must be at least 1; leave it out to take d_model"
            )

    def build(self, d_model: int) -> "RWKV":
        """Make the layer for a decoder of width `d_model`."""
        return RWKV(self, d_model)


class RWKV(PreciseParameters, nn.Module):
    """The layer: shift, project, average, gate, project."""

    precise: ClassVar[tuple[str, ...]] = ("time_decay", "time_first")
    learning_rates: ClassVar[dict[str, float]] = {"time_decay": 2.0, "time_first": 3.0}

    def __init__(self, config: RWKVConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.d_model = d_model
        A = self.width = config.width or d_model
        self.time_decay = nn.Parameter(torch.empty(A))
        self.time_first = nn.Parameter(torch.empty(A))
        if config.token_shift:
            self.mix_k = nn.Parameter(torch.empty(d_model))
            self.mix_v = nn.Parameter(torch.empty(d_model))
            self.mix_r = nn.Parameter(torch.empty(d_model))
        self.k_proj = nn.Linear(d_model, A, bias=False)
        self.v_proj = nn.Linear(d_model, A, bias=False)
        self.r_proj = nn.Linear(d_model, A, bias=False)
        self.o_proj = nn.Linear(A, d_model, bias=False)
        names = ("k_proj", "v_proj", "r_proj")
        # without a shift they read the same, else each its own mixture
        groups = [(name,) for name in names] if config.token_shift else [names]
        self.inward = [JointLinear(*group) for group in groups]
        self.outward = JointLinear("o_proj")
        self._constants: tuple[Tensor | None, Tensor, Tensor] | None = None  # once packed
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """As the official code: the output begins at zero, so that `gain` has nothing to scale.

        Decays run from slow to fast over the channels, more of them slow in later layers; later
        layers look more at the current token.
        """
        with torch.no_grad():
            along = _along(self.width, self.width - 1, self.time_decay)
            self.time_decay.copy_(-5 + 8 * along ** (0.7 + 1.3 * _from_first(depth)))
            zigzag = (torch.arange(self.width, device=along.device) + 1) % 3 - 1
            self.time_first.copy_(math.log(0.3) + 0.5 * zigzag)
            if self.config.token_shift:
                k, v, r = initial_mixes(self.mix_k, depth)
                self.mix_k.copy_(k)
                self.mix_v.copy_(v)
                self.mix_r.copy_(r)
        draw_orthogonal(self.v_proj.weight)
        for proj in (self.k_proj, self.r_proj, self.o_proj):
            nn.init.zeros_(proj.weight)

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """As large after a million tokens as after one; see `Branch`."""
        return 2 * self.width + 1 + (self.d_model if self.config.token_shift else 0)

    def flops_per_token(self, seq_len: int) -> int:  # noqa: ARG002
        """None but its linear layers'; see `Branch`."""
        return 0

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        for linear in (*self.inward, self.outward):
            linear.pack(self, weights)
        self._constants = self._step_constants()

    def open_state(self, state: RWKVState | WKVState, tokens: int) -> OpenedRWKV:  # noqa: ARG002
        """Begin single steps; see `Steps`."""
        *shift, mean, log_mass, seen = state
        nothing = log_mass.where((seen > 0)[:, None], NOTHING)
        return OpenedRWKV(shift[0] if shift else mean[:, :0], mean, nothing)

    def close_state(self, opened: OpenedRWKV) -> RWKVState | WKVState:
        """The plain state again; see `Steps`."""
        shift, mean, log_mass = opened
        some = log_mass > 0.5 * NOTHING
        average = WKVState(mean, log_mass.where(some, 0.0), some[:, 0].to(mean.dtype))
        return RWKVState(shift.to(mean.dtype), *average) if self.config.token_shift else average

    def write_step(self, program: Program, x: Read, stream: Vector, at: Place) -> None:
        """Instructions for one token; see `Compiles`."""
        reads = [x] * 3
        if self.config.token_shift:
            mixes = (self.mix_k, self.mix_v, self.mix_r)
            reads = [Read(y) for y in program.shift(x, mixes, ROOM, Leaf(*at, "past"))]
        k, v, r = (JointLinear(f"{name}_proj").joined(self)[0] for name in "kvr")
        kv, gate = program.vector(2 * self.width), program.vector(self.width)
        program.linear(reads[0], k, None, kv.cut(0, self.width))
        program.linear(reads[1], v, None, kv.cut(self.width, self.width))
        program.linear(reads[2], r, None, gate, activation="sigmoid")
        _, log_decay, bonus = self._step_constants()
        y = program.wkv(kv, log_decay, bonus, ROOM, Leaf(*at, "average"))
        program.linear(Read(y, gate=gate), *self.outward.joined(self), stream, add=True)

    def open_leaves(self, state: RWKVState | WKVState, layout: Layout) -> RWKVLeaves:  # noqa: ARG002
        """Begin steps of a program; see `CompilesState`."""
        shift, *average = self.open_state(state, 0)
        return RWKVLeaves(begin_places(shift), begin_places(torch.cat(average, -1)))

    def next_leaves(self, leaves: RWKVLeaves, layout: Layout) -> RWKVLeaves:  # noqa: ARG002
        """Room for the tokens after these; see `CompilesState`."""
        return RWKVLeaves(*map(torch.empty_like, leaves))

    def close_leaves(self, leaves: RWKVLeaves, used: int) -> RWKVState | WKVState:
        """The plain state again; see `CompilesState`."""
        mean, log_mass = end_places(leaves.average, used).chunk(2, -1)
        return self.close_state(OpenedRWKV(end_places(leaves.past, used), mean, log_mass))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: RWKVState | WKVState | OpenedRWKV | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], RWKVState | WKVState | OpenedRWKV]:
        """Mix T tokens; see `Branch` for the contract. Without a shift the state is WKV's alone."""
        if isinstance(state, OpenedRWKV):
            return self._step(x, state)
        if self.config.token_shift:
            last = state.shift if isinstance(state, RWKVState) else None
            mixed, shift = token_shift(x, last, layout, self.mix_k, self.mix_v, self.mix_r)
            k, v, r = (joint(self, y)[0] for joint, y in zip(self.inward, mixed, strict=True))
            average = WKVState(*state[1:]) if isinstance(state, RWKVState) else None
        else:
            shift = None
            k, v, r = self.inward[0](self, x)
            average = state if isinstance(state, WKVState) else None
        y, average = wkv(
            *(k, v, self.time_decay, self.time_first, average),
            layout=layout,
            form=None if form == "auto" else form,
        )
        o = self.outward(self, gated(r, y, "sigmoid"))[0]
        return o, average if shift is None else RWKVState(shift, *average)

    def _step(
        self, x: Float[Tensor, "B 1 D"], opened: OpenedRWKV
    ) -> tuple[Float[Tensor, "B 1 D"], OpenedRWKV]:
        """One token, in as few calls as there are: in small models they are what it costs."""
        x = x[:, 0]
        shift, mean, log_mass = opened
        mixes, log_decay, bonus = self._constants or self._step_constants()
        if mixes is None:
            k, v, r = self.inward[0](self, x)
        else:
            mixed = torch.lerp(shift.to(x.dtype), x, mixes.to(x.dtype)).unbind()
            k, v, r = (joint(self, y)[0] for joint, y in zip(self.inward, mixed, strict=True))
            shift = x
        k, v = k.to(mean.dtype), v.to(mean.dtype)
        y, mean, log_mass = step(k, v, log_decay, bonus, mean, log_mass)
        o = self.outward(self, r.sigmoid() * y.to(r.dtype))[0]
        return o[:, None], OpenedRWKV(shift, mean, log_mass)

    def _step_constants(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """Mixing weights as (3, 1, D), log_decay and bonus."""
        mixes = None
        if self.config.token_shift:
            mixes = torch.stack((self.mix_k, self.mix_v, self.mix_r))[:, None].detach()
        log_decay = -self.time_decay.detach().exp()
        return mixes, log_decay, self.time_first.detach() + log_decay


def initial_mix(like: Float[Tensor, " D"], depth: Depth) -> Float[Tensor, " D"]:
    """The current token's part, from 0 to 1 over the channels, and larger in later layers."""
    return _along(len(like), len(like), like) ** (1 - depth.layer / depth.num_layers)


def initial_mixes(like: Float[Tensor, " D"], depth: Depth) -> tuple[Tensor, Tensor, Tensor]:
    """Of what keys, values and gates read: the latter two look more at the current token."""
    mix = initial_mix(like, depth)
    return mix, mix + 0.3 * _from_first(depth), mix**0.5


def draw_orthogonal(weight: Float[Tensor, "rows columns"]) -> None:
    """Orthogonal, such that vectors keep the size of their elements where they become wider."""
    rows, columns = weight.shape
    nn.init.orthogonal_(weight, max(rows / columns, 1) ** 0.5)


def _from_first(depth: Depth) -> float:
    """0 in the first layer, 1 in the last of several."""
    return depth.layer / max(depth.num_layers - 1, 1)


def _along(width: int, steps: int, like: Tensor) -> Tensor:
    """`i / steps` for channel i of `width`; a lone channel is the first."""
    i = torch.arange(width, dtype=torch.float64, device=like.device)
    return i / max(steps, 1)
