"""The layer of softmax attention: project, place, mix, project."""

import logging
import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.mixers.attention.config import AttentionConfig
from retnet.mixers.attention.position import make_position
from retnet.mixers.attention.program import (
    AttentionLeaves,
    close_attention,
    next_attention,
    open_attention,
    write_attention,
)
from retnet.mixers.branch import ALONE, Depth, Place
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout, attention
from retnet.ops.attention import AttentionState, StaticCache, WindowState
from retnet.ops.attention.flops import causal_flops
from retnet.ops.attention.temperature import log_n_scale
from retnet.ops.packed_linear import Weights
from retnet.ops.program import Program, Read, Vector
from retnet.ops.random_positions import exponential_spread, random_subset
from retnet.types import FormChoice

log = logging.getLogger(__name__)

State = AttentionState | WindowState | StaticCache


class Attention(nn.Module):
    """The layer: project, place, mix, project."""

    urpe: nn.Parameter | None
    learning_rates: ClassVar[dict[str, float]] = {"urpe": 1.0}  # and no weight decay

    def __init__(self, config: AttentionConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.D_k = _head_size(config, d_model)
        width, kv_width = config.num_heads * self.D_k, config.kv_heads * self.D_k
        of_qk = config.bias or config.qk_bias
        self.q_proj = nn.Linear(d_model, width, bias=of_qk)
        self.k_proj = nn.Linear(d_model, kv_width, bias=of_qk)
        self.v_proj = nn.Linear(d_model, kv_width, bias=config.bias)
        self.o_proj = nn.Linear(width, d_model, bias=config.bias)
        if config.qk_bias:  # only alike layers are joined
            self.inward = (JointLinear("q_proj", "k_proj"), JointLinear("v_proj"))
        else:
            self.inward = (JointLinear("q_proj", "k_proj", "v_proj"),)
        self.outward = JointLinear("o_proj")
        self.position = make_position(config, self.D_k)
        if config.position == "alibi" and config.num_heads == 1:
            log.warning(
                'position = "alibi" with one head: it works by slopes that differ between heads'
            )
        self.urpe = None
        if config.urpe is not None:
            self.urpe = nn.Parameter(torch.empty(config.num_heads, config.urpe + 1))
        self._changes = _changes(config)
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """Normal with deviation 0.02, as GPT-2 and Llama; that of v and o times `gain`."""
        for proj in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            sizes_output = proj is self.v_proj or proj is self.o_proj
            nn.init.normal_(proj.weight, std=0.02 * (gain if sizes_output else 1))
            if proj.bias is not None:
                nn.init.zeros_(proj.bias)
        if self.urpe is not None:
            nn.init.ones_(self.urpe)
        if next(self.position.parameters(), None) is not None:
            self.position.reset_parameters()  # type: ignore[operator]

    def flops_per_token(self, seq_len: int) -> int:
        """Scores, sums of values, and rotation by a matrix; see `Branch`."""
        config = self.config
        D_k = self.D_k if config.rerope is None else 2 * self.D_k  # near and far
        flops = config.num_heads * causal_flops(seq_len, D_k, self.D_k, config.reach)
        if config.position == "general":
            bits = max((seq_len - 1).bit_length(), 1)
            flops += (config.num_heads + config.kv_heads) * 2 * bits * self.D_k**2
        return flops

    def state_size(self, tokens: int) -> int:
        """A key and a value for each token, or for each slot of a window; see `Branch`."""
        config = self.config
        slots = tokens if config.window is None else config.window + config.sinks
        return 2 * slots * config.kv_heads * self.D_k

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: State | None,
        layout: Layout,
        form: FormChoice = "auto",  # noqa: ARG002  (a softmax has one form)
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Mix T tokens; see `Branch` for the contract."""
        projected = [y for joint in self.inward for y in joint(self, x)]
        q, k, v = (y.unflatten(-1, (-1, self.D_k)) for y in projected)
        if self.config.scores != "scaled":
            k = _normalised(k)
        if self.config.scores == "cosine":
            q = _normalised(q)
        if self.config.log_n != "none":
            q = q * self._temperature(layout, q.dtype)
        q, k, rule = self.position(q, k, self._positions(state, layout), layout)
        if self._changes or self.urpe is not None:
            rule = replace(
                rule, **self._changes, factor=None if self.urpe is None else self._factor
            )
        if isinstance(state, StaticCache):
            o, state = state.step(q, k, v, layout, rule)
        else:
            reach = self.config.reach
            o, state = attention(q, k, v, state, layout=layout, reach=reach, rule=rule)
        return self.outward(self, o.flatten(2))[0], state

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        for joint in (*self.inward, self.outward):
            joint.pack(self, weights)

    def write_step(self, program: Program, x: Read, stream: Vector, at: Place) -> None:
        """Instructions for one token; see `Compiles`."""
        write_attention(self, program, x, stream, at)

    def open_leaves(self, state: AttentionState, layout: Layout) -> AttentionLeaves:
        """Begin steps of a program; see `CompilesState`."""
        return open_attention(self, state, layout)

    def next_leaves(self, leaves: AttentionLeaves, layout: Layout) -> AttentionLeaves:
        """Room for the tokens after these; see `CompilesState`."""
        return next_attention(self, leaves, layout)

    def close_leaves(self, leaves: AttentionLeaves, used: int) -> AttentionState:
        """The plain state again; see `CompilesState`."""
        return close_attention(self, leaves, used)

    def open_state(
        self, state: AttentionState | WindowState, tokens: int
    ) -> AttentionState | WindowState | StaticCache:
        """Copy the state and make room for `tokens` more; see `Steps`.

        The state of a window has a fixed size and is stepped as it is. So are those whose keys
        are read in ways that the opened kind does not know.
        """
        config = self.config
        kernel = config.weights == "softmax" and config.urpe is None and not config.rereads
        if isinstance(state, WindowState) or not kernel:
            return state
        return StaticCache.open(state, tokens, config.num_heads // config.kv_heads)

    def close_state(self, opened: State) -> AttentionState | WindowState:
        """Return the plain state again; see `Steps`."""
        return opened.close() if isinstance(opened, StaticCache) else opened

    def _positions(self, state: State | None, layout: Layout) -> Tensor:
        """Where tokens stand, or where this step of training says so."""
        random = self.config.random_positions
        if random is None or not self.training:
            return layout.positions
        if state is not None:
            raise ValueError(
                "random_positions are drawn for whole texts, and this call goes on from a state; "
                "call eval(), or train without handing states over"
            )

        def draw() -> Tensor:
            (B,), (_, T) = layout.next_position.shape, layout.positions.shape
            device = layout.positions.device
            if random.length is None:
                drawn = exponential_spread(B, T, device)
            else:
                drawn = random_subset(B, T, random.length, device)
            return drawn.gather(1, layout.positions.expand(B, T))

        return layout.shared(("random positions", random), draw)

    def _temperature(self, layout: Layout, dtype: torch.dtype) -> Tensor:
        """Scale of each query, (rows, T, 1, 1)."""
        config, N = self.config, self.config.train_len
        assert N is not None

        def build() -> Tensor:
            n = layout.positions + 1
            if config.window is not None:
                n = n.clamp(max=config.window + config.sinks)
            return log_n_scale(n, N, config.log_n)[..., None, None].to(dtype)

        return layout.shared(("log n", config.reach, N, config.log_n, dtype), build)

    def _factor(self, distance: Float[Tensor, "rows queries keys"]) -> Tensor:
        """URPE's factors, (rows, H, queries, keys)."""
        assert self.urpe is not None
        at = distance.long().clamp(max=self.urpe.shape[1] - 1)
        return self.urpe[:, at].transpose(0, 1)


def _head_size(config: AttentionConfig, d_model: int) -> int:
    if config.head_size is None and d_model % config.num_heads:
        raise ValueError(
            f"d_model ({d_model}) must be a multiple of num_heads ({config.num_heads}); "
            "change one of them or set head_size"
        )
    size = config.head_size or d_model // config.num_heads
    if size % 2 and config.position in ("rope", "xpos", "general"):
        name = "d_model / num_heads" if config.head_size is None else "head_size"
        raise ValueError(
            f"{name} ({size}) must be even, because channels rotate in pairs; "
            'change one of them or set position = "none"'
        )
    return size


def _changes(config: AttentionConfig) -> dict[str, Any]:
    """What the config changes in the rule that the positions give."""
    changes: dict[str, Any] = {}
    if config.weights != "softmax":
        changes["weights"] = config.weights
    if config.scores == "key_norm":
        changes["scale"] = 1.0
    if config.scores == "cosine":
        assert config.train_len is not None
        changes["scale"] = 4 * math.log(config.train_len)
    return changes


def _normalised(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.normalize(x.to(wide), dim=-1).to(x.dtype)
