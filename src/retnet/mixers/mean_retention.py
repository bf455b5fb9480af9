"""Retention that takes means: positive weights, which sum to one."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.branch import ALONE, Depth, Place, chosen_form
from retnet.mixers.mean_retention_program import (
    close_means,
    next_means,
    open_means,
    write_mean_retention,
)
from retnet.mixers.projection import JointLinear
from retnet.mixers.retention import head_sizes, log_decays, shared_log_decay
from retnet.mixers.retention_program import RetentionLeaves, ShiftedLeaves
from retnet.mixers.rwkv import initial_mixes
from retnet.ops import Layout
from retnet.ops.gate import gated
from retnet.ops.linear_attention import LinearAttentionState, features, linear_attention
from retnet.ops.packed_linear import Weights
from retnet.ops.program import Program, Read, Vector
from retnet.ops.recompute import side_by_side
from retnet.ops.retention.flops import chunkwise_flops
from retnet.ops.token_shift import token_shift
from retnet.types import FormChoice

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "g_proj")


class MeanRetentionState(NamedTuple):
    """Sums of weighted values and of weights, and the last token."""

    S: Float[Tensor, "B H D_k D_v"]
    z: Float[Tensor, "B H D_k"]
    shift: Float[Tensor, "B D"]


@dataclass(frozen=True, kw_only=True)
class MeanRetentionConfig:
    """Retention (Sun et al. 2023, arXiv:2307.08621) whose outputs are means, as RWKV's are.

    In retention a token's weight is a product of its key and the query, of either sign, and what
    matters less dilutes what matters. Here it is an exponential, as in RWKV-4 (Peng et al. 2023,
    arXiv:2305.13048, equation 14): what a head marks as important outweighs everything else until
    it fades. Each channel of a key is such a memory, and the query chooses among them. Queries,
    keys, values and gate each have a token shift of their own, with RWKV's initialisation.

    Attributes:
        num_heads: H; each head has a decay of its own.
        key_width: D_k of all heads together; None means d_model.
        value_width: D_v of all heads together; None means d_model.
        decay: as in `RetentionConfig`.
        token_shift: mix each token with the one before it; without, every token is read alone.
    """

    formula: ClassVar[str] = (
        "o_n = Σ_(j≤n) γ^(n-j) (e^(q_n)·e^(k_j)) v_j / (the same of 1), y = (sigmoid(g) ⊙ o) W_o"
    )
    cost: ClassVar[str] = "O(D (C + D_k)) / O(D D_k)"
    left_out: ClassVar[str] = ""

    num_heads: int
    key_width: int | None = None
    value_width: int | None = None
    decay: str = "linspace:2:512"
    token_shift: bool = True

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"num_heads ({self.num_heads}) must be at least 1")
        log_decays(self.decay, self.num_heads)

    def build(self, d_model: int) -> "MeanRetention":
        """Make the layer for a decoder of width `d_model`."""
        return MeanRetention(self, d_model)


class MeanRetention(nn.Module):
    """The layer: shift, project, average, gate, project."""

    of_heads: ClassVar[tuple[str, ...]] = ("S", "z")

    def __init__(self, config: MeanRetentionConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.d_model = d_model
        key_width, value_width = config.key_width or d_model, config.value_width or d_model
        self.D_k, self.D_v = head_sizes(key_width, value_width, config.num_heads)
        if config.token_shift:
            self.mix_q = nn.Parameter(torch.empty(d_model))
            self.mix_k = nn.Parameter(torch.empty(d_model))
            self.mix_v = nn.Parameter(torch.empty(d_model))
            self.mix_g = nn.Parameter(torch.empty(d_model))
        self.q_proj = nn.Linear(d_model, key_width, bias=False)
        self.k_proj = nn.Linear(d_model, key_width, bias=False)
        self.v_proj = nn.Linear(d_model, value_width, bias=False)
        self.g_proj = nn.Linear(d_model, value_width, bias=False)
        self.o_proj = nn.Linear(value_width, d_model, bias=False)
        # without a shift they read the same, else each its own mixture
        groups = [(name,) for name in PROJECTIONS] if config.token_shift else [PROJECTIONS]
        self.inward = [JointLinear(*group) for group in groups]
        self.outward = JointLinear("o_proj")
        self.log_decays = tuple(log_decays(config.decay, config.num_heads).tolist())
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:
        """Xavier with gain 1, so that weights differ from the start; gates begin half open."""
        for proj in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(proj.weight, gain if proj is self.v_proj else 1.0)
        nn.init.xavier_uniform_(self.g_proj.weight, 2**-2.5)
        nn.init.xavier_uniform_(self.o_proj.weight, 2**-1 * gain)
        if self.config.token_shift:
            with torch.no_grad():
                k, v, g = initial_mixes(self.mix_k, depth)
                self.mix_q.copy_(g)
                self.mix_k.copy_(k)
                self.mix_v.copy_(v)
                self.mix_g.copy_(g)

    def flops_per_token(self, seq_len: int) -> int:
        """Those of the chunkwise form, the divisor's included; see `Branch`."""
        return self.config.num_heads * chunkwise_flops(seq_len, self.D_k, self.D_v + 1)

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """A matrix and a vector of each head, and a token; see `Branch`."""
        shift = self.d_model if self.config.token_shift else 0
        return self.config.num_heads * self.D_k * (self.D_v + 1) + shift

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        for linear in (*self.inward, self.outward):
            linear.pack(self, weights)

    def write_step(self, program: Program, x: Read, stream: Vector, at: Place) -> None:
        """Instructions for one token; see `Compiles`."""
        write_mean_retention(self, program, x, stream, at)

    def open_leaves(
        self, state: MeanRetentionState | LinearAttentionState, layout: Layout
    ) -> ShiftedLeaves | RetentionLeaves:
        """Begin steps of a program; see `CompilesState`."""
        shift = state.shift if isinstance(state, MeanRetentionState) else None
        return open_means(LinearAttentionState(state.S, state.z), shift, layout)

    def next_leaves(
        self, leaves: ShiftedLeaves | RetentionLeaves, layout: Layout
    ) -> ShiftedLeaves | RetentionLeaves:
        """Room for the tokens after these; see `CompilesState`."""
        return next_means(leaves, layout)

    def close_leaves(
        self, leaves: ShiftedLeaves | RetentionLeaves, used: int
    ) -> MeanRetentionState | LinearAttentionState:
        """The plain state again; see `CompilesState`."""
        sums, shift = close_means(self, leaves, used)
        return sums if shift is None else MeanRetentionState(*sums, shift)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MeanRetentionState | LinearAttentionState | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], MeanRetentionState | LinearAttentionState]:
        """Mix T tokens; see `Branch` for the contract. Without a shift the state has none."""
        if self.config.token_shift:
            last = state.shift if isinstance(state, MeanRetentionState) else None
            mixes = (self.mix_q, self.mix_k, self.mix_v, self.mix_g)
            mixed, shift = token_shift(x, last, layout, *mixes)
            projected = [joint(self, y)[0] for joint, y in zip(self.inward, mixed, strict=True)]
        else:
            projected, shift = self.inward[0](self, x), None
        H = self.config.num_heads
        q, k, v, g = (y.unflatten(-1, (H, -1)) for y in projected)
        if x.dtype == torch.float16:  # exponentials overflow it
            q, k, v = q.float(), k.float(), v.float()
        o, sums = linear_attention(
            *(features(q, "exp"), features(k, "exp"), v),
            None if state is None else LinearAttentionState(state.S, state.z),
            log_decay=shared_log_decay(layout, self.config.decay, H, q.device),
            eps=0.0,  # each token weighs something in its own mean
            layout=layout,
            form=chosen_form(form, x.shape[1]),
        )
        y = self.outward(self, side_by_side(gated(g, o.to(g.dtype), "sigmoid")))[0]
        return y, sums if shift is None else MeanRetentionState(*sums, shift)
