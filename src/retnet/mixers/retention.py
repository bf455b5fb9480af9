"""Gated multi-scale retention: parameters around `retnet.ops.retention`."""

import logging
import math
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.branch import ALONE, Depth, Place, chosen_form
from retnet.mixers.projection import JointLinear
from retnet.mixers.retention_program import (
    RetentionLeaves,
    close_retention,
    next_retention,
    open_retention,
    write_retention,
)
from retnet.mixers.retention_step import OpenedRetention, retention_step
from retnet.ops import Layout, retention
from retnet.ops.gate import gated, gated_rms_norm
from retnet.ops.norm import rms_norm
from retnet.ops.packed_linear import Weights
from retnet.ops.program import Program, Read, Vector
from retnet.ops.recompute import side_by_side
from retnet.ops.retention.buffered import empty_buffer, settle
from retnet.ops.retention.flops import chunkwise_flops
from retnet.ops.retention.initial import initial_output
from retnet.ops.retention.normalizers import squared_decay_norm, torchscale_row_sum
from retnet.ops.rotation import PairLayout, Theta, rotate_both, rotation_tables
from retnet.types import Form, FormChoice

log = logging.getLogger(__name__)

ScoreNorm = Literal["scaled", "torchscale", "torchscale_v1", "none"]
HeadNorm = Literal["rms", "layer", "none"]


class RetentionState(NamedTuple):
    """What retention remembers of a sequence: as large after a million tokens as after one."""

    S: Float[Tensor, "B H D_k D_v"]


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """Gated multi-scale retention (Sun et al. 2023, arXiv:2307.08621, section 2.2).

    Attributes:
        num_heads: H; each head has a decay of its own.
        key_width: D_k of all heads together; None means d_model.
        value_width: D_v of all heads together; None means 2 d_model.
        decay: `pow2` (1 - 2^(-5-h), the official code), `linspace` (the paper's own models: 1 - 1/n
            with n from 32 to 512 tokens), `linspace:a:b` (n from a to b) or `constant:x` (x for
            every head, 0 < x <= 1; 1 is no decay).
        theta: rotation frequencies, see `retnet.ops.rotation.frequencies`.
        pairs: which channels rotate together.
        score_norm: `scaled` divides o_n by c_n, c_n^2 = sum of decay^j for j <= n, the same in
            every form. `torchscale` adds the official code's row normalizer, which only the
            parallel form of a whole sequence can compute (`torchscale_v1`: its older rule);
            `none` leaves o as it is.
        gate: multiply the normalised output by swish(x W_g).
        head_norm: norm of each token's head output before the gate.
        head_norm_affine: learn one weight vector of D_v per layer for that norm.
        norm_eps: its epsilon.
        bias: whether the projections have biases.
        initial_state: learn one S of each head, `initial_S`, with which every document begins.
    """

    formula: ClassVar[str] = (
        "S_n = γ S_(n-1) + k_nᵀ v_n, o_n = q_n S_n, y = (swish(g) ⊙ norm(o)) W_o"
    )
    cost: ClassVar[str] = "O(D (C + D_k)) / O(D D_k)"

    num_heads: int
    key_width: int | None = None
    value_width: int | None = None
    decay: str = "pow2"
    theta: Theta = "rope"
    pairs: PairLayout = "half"
    score_norm: ScoreNorm = "scaled"
    gate: bool = True
    head_norm: HeadNorm = "rms"
    head_norm_affine: bool = False
    norm_eps: float = 1e-6
    bias: bool = False
    initial_state: bool = False

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"num_heads ({self.num_heads}) must be at least 1")
        log_decays(self.decay, self.num_heads)

    def build(self, d_model: int) -> "Retention":
        """Make the layer for a decoder of width `d_model`."""
        return Retention(self, d_model)


class Retention(nn.Module):
    """The layer: project, rotate, mix, normalise, gate, project."""

    spans_ranks = True
    of_heads: ClassVar[tuple[str, ...]] = ("S",)

    def __init__(self, config: RetentionConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        key_width = config.key_width or d_model
        value_width = config.value_width or 2 * d_model
        self.D_k, self.D_v = head_sizes(key_width, value_width, config.num_heads)
        if self.D_k % 2 and config.theta != "none":
            raise ValueError(
                f"key_width / num_heads ({self.D_k}) must be even, because channels rotate in "
                'pairs; change one of them or set theta = "none"'
            )
        self.q_proj = nn.Linear(d_model, key_width, bias=config.bias)
        self.k_proj = nn.Linear(d_model, key_width, bias=config.bias)
        self.v_proj = nn.Linear(d_model, value_width, bias=config.bias)
        self.g_proj = nn.Linear(d_model, value_width, bias=config.bias) if config.gate else None
        self.o_proj = nn.Linear(value_width, d_model, bias=config.bias)
        self.head_norm_weight = (
            nn.Parameter(torch.ones(self.D_v)) if config.head_norm_affine else None
        )
        shape = config.num_heads, self.D_k, self.D_v
        self.initial_S = nn.Parameter(torch.zeros(shape)) if config.initial_state else None
        inward = ("q_proj", "k_proj", "v_proj") + ("g_proj",) * config.gate
        self.inward = JointLinear(*inward)
        self.outward = JointLinear("o_proj")
        self.log_decays = tuple(log_decays(config.decay, config.num_heads).tolist())
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """Xavier with gain 2^-2.5 on the way in and 2^-1 on the way out, as the official code."""
        for proj in (self.q_proj, self.k_proj, self.v_proj, self.g_proj):
            if proj is not None:
                nn.init.xavier_uniform_(proj.weight, 2**-2.5 * (gain if proj is self.v_proj else 1))
        nn.init.xavier_uniform_(self.o_proj.weight, 2**-1 * gain)
        for module in self.children():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.head_norm_weight is not None:
            nn.init.ones_(self.head_norm_weight)
        if self.initial_S is not None:
            nn.init.zeros_(self.initial_S)

    def flops_per_token(self, seq_len: int) -> int:
        """Those of the chunkwise form; see `Branch`."""
        flops = chunkwise_flops(seq_len, self.D_k, self.D_v)
        if self.initial_S is not None:
            flops += 2 * self.D_k * self.D_v  # read once per token
        return self.config.num_heads * flops

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """S, whatever was read; see `Branch`."""
        return self.config.num_heads * self.D_k * self.D_v

    def open_state(self, state: RetentionState, tokens: int) -> OpenedRetention:  # noqa: ARG002
        """Begin single steps; see `Steps`."""
        return OpenedRetention(empty_buffer(state.S))

    def close_state(self, opened: OpenedRetention) -> RetentionState:
        """The plain state again; see `Steps`."""
        return RetentionState(settle(opened.buffer, self.log_decays))

    def write_step(self, program: Program, x: Read, stream: Vector, at: Place) -> None:
        """Instructions for one token; see `Compiles`."""
        write_retention(self, program, x, stream, at)

    def open_leaves(self, state: RetentionState, layout: Layout) -> RetentionLeaves:
        """Begin steps of a program; see `CompilesState`."""
        return open_retention(self, state.S, layout)

    def next_leaves(self, leaves: RetentionLeaves, layout: Layout) -> RetentionLeaves:
        """Room for the tokens after these; see `CompilesState`."""
        return next_retention(self, leaves, layout)

    def close_leaves(self, leaves: RetentionLeaves, used: int) -> RetentionState:
        """The plain state again; see `CompilesState`."""
        return RetentionState(close_retention(self, leaves, used))

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.inward.pack(self, weights)
        self.outward.pack(self, weights)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: RetentionState | OpenedRetention | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], RetentionState | OpenedRetention]:
        """Mix T tokens; see `Branch` for the contract."""
        if isinstance(state, OpenedRetention):
            return retention_step(self, x, state, layout)
        q, k, v, *gate = (
            y.unflatten(-1, (self.config.num_heads, -1)) for y in self.inward(self, x)
        )
        if x.dtype == torch.float16:  # o overflows float16 long before the head norm tames it
            q, k, v = q.float(), k.float(), v.float()
        q, k = self._rotate(q, k, layout)
        log_decay = self.log_decay(layout, q.device)
        S = None if state is None else state.S
        chosen = self._choose(form, q.shape[1], S)
        o, S = retention(q, k, v, log_decay, S, layout=layout, form=chosen)
        if self.initial_S is not None:
            o = o + initial_output(q, log_decay, self.initial_S, layout)
        squared = self._score_norm(q, k, log_decay, state, layout, chosen)
        y = self.normalize_and_gate(o, squared, *gate).to(x.dtype)
        return self.outward(self, side_by_side(y))[0], RetentionState(S)

    def _rotate(self, q: Tensor, k: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Give q and k the same rotation: the dot product itself conjugates one of them."""
        scale = self.D_k**-0.5
        theta = self.config.theta
        if theta == "none":
            return q, k * scale
        tables = layout.shared(
            ("rotation", theta, self.D_k, q.dtype),
            lambda: _scaled_tables(layout, theta, self.D_k, q.dtype, scale),
        )
        return rotate_both(q, k, tables, self.config.pairs)

    def log_decay(self, layout: Layout, device: torch.device) -> Tensor:
        """Of each head, float64; see `shared_log_decay`."""
        return shared_log_decay(layout, self.config.decay, self.config.num_heads, device)

    def _choose(self, form: FormChoice, T: int, S: Tensor | None) -> Form:
        if form == "auto" and self.config.score_norm.startswith("torchscale") and S is None:
            return "parallel"  # the only form that has the row normalizer
        return chosen_form(form, T)

    def _score_norm(
        self,
        q: Tensor,
        k: Tensor,
        log_decay: Tensor,
        state: RetentionState | None,
        layout: Layout,
        form: Form,
    ) -> Tensor | None:
        """Squares of what each o_n is divided by, (rows, T, H); None for one."""
        config = self.config
        if layout.spread is not None and config.score_norm.startswith("torchscale"):
            raise ValueError(
                f'score_norm "{config.score_norm}" needs every score of a row in one process, and '
                "these rows are spread over several; run them whole (train.sequence_ranks = 1), or "
                'set score_norm = "scaled"'
            )
        if config.score_norm == "none":
            return None
        squared = layout.shared(
            ("squared_decay_norm", config.decay, config.num_heads),
            lambda: squared_decay_norm(layout.positions, log_decay),
        )
        if config.score_norm == "scaled":
            return squared
        if form != "parallel" or state is not None:
            _warn_once(
                f'score_norm "{config.score_norm}" needs the parallel form of a whole sequence; '
                'this call uses "scaled", as the official recurrent form does'
            )
            return squared
        absolute = config.score_norm == "torchscale"
        return squared * torchscale_row_sum(q, k, log_decay, squared, layout, absolute) ** 2

    def normalize_and_gate(
        self, o: Tensor, squared: Tensor | None, g: Tensor | None = None
    ) -> Tensor:
        """Norm of o / c over each head's D_v, where `squared` is c^2, times swish(g).

        The division is folded into the norm: norm(o / c; eps) = norm(o; eps c^2), so it costs a
        number per token and head instead of a pass over o.
        """
        config = self.config
        if config.head_norm == "none":
            y = o if squared is None else o * squared.rsqrt()[..., None].to(o.dtype)
            return y if g is None else gated(g, y.to(g.dtype))
        eps = config.norm_eps if squared is None else config.norm_eps * squared[..., None]
        if config.head_norm == "layer":
            o = o - o.mean(-1, keepdim=True)
        if g is not None and self.head_norm_weight is None:
            return gated_rms_norm(o, g, eps)
        y = rms_norm(o, self.head_norm_weight, eps)
        return y if g is None else gated(g, y.to(g.dtype))


def head_sizes(key_width: int, value_width: int, num_heads: int) -> tuple[int, int]:
    """D_k and D_v.

    Raises:
        ValueError: heads do not divide a width.
    """
    for name, width in (("key_width", key_width), ("value_width", value_width)):
        if width % num_heads:
            raise ValueError(
                f"{name} ({width}) must be a multiple of num_heads ({num_heads}); "
                "change one of them in the mixer's config"
            )
    return key_width // num_heads, value_width // num_heads


def shared_log_decay(
    layout: Layout, decay: str, num_heads: int, device: torch.device
) -> Float[Tensor, " H"]:
    """`log_decays`, once in a call for all layers.

    Computed, not stored: a buffer would follow its module into half precision.
    """
    return layout.shared(
        ("log_decay", decay, num_heads), lambda: log_decays(decay, num_heads, device)
    )


def log_decays(
    decay: str, num_heads: int, device: torch.device | str = "cpu"
) -> Float[Tensor, " H"]:
    """Logarithm of each head's decay, float64 (float32 would round heads 20 and up to no decay).

    They are made on `device`, whatever the default is: a copy makes a GPU's host wait.

    Raises:
        ValueError: `decay` is none of pow2, linspace, linspace:a:b with 1 < a <= b, constant:x with
            0 < x <= 1.

    Source:
        pow2: arXiv:2307.08621 equation 8. linspace: its section 3.1.
    """
    exact: Any = {"dtype": torch.float64, "device": device}
    if decay == "pow2":
        return torch.log1p(-(2.0 ** (-5 - torch.arange(num_heads, **exact))))
    match _parsed(decay):
        case ["linspace", a, b] if 1 < a <= b < math.inf:
            missing = torch.linspace(-math.log(a), -math.log(b), num_heads, **exact).exp()
            return torch.log1p(-missing)
        case ["constant", x] if 0 < x <= 1:
            return torch.full((num_heads,), math.log(x), **exact)
    raise ValueError(
        f'decay "{decay}" must be "pow2", "linspace" or "constant:x" with 0 < x <= 1, as in '
        '"constant:0.99", or "linspace:a:b" with 1 < a <= b, as in "linspace:2:512"'
    )


def _parsed(decay: str) -> list[Any]:
    """A rule's name and its numbers; no number where there is none."""
    if decay == "linspace":
        return ["linspace", 32.0, 512.0]
    kind, *values = decay.split(":")
    try:
        return [kind, *map(float, values)]
    except ValueError:
        return [kind]


def _scaled_tables(
    layout: Layout, theta: Theta, D_k: int, dtype: torch.dtype, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tables for q, and for k with its scale D_k^-1/2 folded in."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    cos, sin = rotation_tables(layout.positions, theta, D_k, exact)
    return cos.to(dtype), sin.to(dtype), (cos * scale).to(dtype), (sin * scale).to(dtype)


@cache
def _warn_once(message: str) -> None:
    log.warning(message)
