"""Softmax attention: parameters around `retnet.ops.attention`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.branch import ALONE, Depth
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout, attention
from retnet.ops.attention import AttentionState, StaticCache
from retnet.ops.attention.flops import causal_flops
from retnet.ops.packed_linear import Weights
from retnet.ops.rotation import PairLayout, rotate, rotation_tables
from retnet.types import FormChoice


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Softmax attention (Vaswani et al. 2017, arXiv:1706.03762), as the Transformers of today.

    Attributes:
        num_heads: H, each d_model / H wide.
        num_kv_heads: heads of keys and values, each shared by as many heads of queries (Ainslie et
            al. 2023, arXiv:2305.13245); None means num_heads.
        position: `rope` rotates queries and keys by their position (Su et al. 2021,
            arXiv:2104.09864); `none` leaves order to the causal mask.
        rope_base: the slowest pair of channels turns by almost 1 / rope_base per token.
        pairs: which channels rotate together.
        bias: whether the projections have biases.
    """

    formula: ClassVar[str] = "o_n = sum_(j<=n) softmax_j(q_n . k_j / sqrt(D_k)) v_j, y = o W_o"
    cost: ClassVar[str] = "O(T D) / O(n D) after n tokens"

    num_heads: int
    num_kv_heads: int | None = None
    position: Literal["rope", "none"] = "rope"
    rope_base: float = 10_000.0
    pairs: PairLayout = "half"
    bias: bool = False

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"num_heads ({self.num_heads}) must be at least 1")
        if self.kv_heads < 1 or self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
                f"({self.num_kv_heads}); change one of them"
            )
        if not self.rope_base > 1:
            raise ValueError(f"rope_base ({self.rope_base}) must be greater than 1; 10000 is usual")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    def build(self, d_model: int) -> "Attention":
        """Make the layer for a decoder of width `d_model`."""
        return Attention(self, d_model)


class Attention(nn.Module):
    """The layer: project, rotate, mix, project."""

    def __init__(self, config: AttentionConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        if d_model % config.num_heads:
            raise ValueError(
                f"d_model ({d_model}) must be a multiple of num_heads ({config.num_heads}); "
                "change one of them"
            )
        self.D_k = d_model // config.num_heads
        if self.D_k % 2 and config.position == "rope":
            raise ValueError(
                f"d_model / num_heads ({self.D_k}) must be even, because channels rotate in pairs; "
                'change one of them or set position = "none"'
            )
        kv_width = config.kv_heads * self.D_k
        self.q_proj = nn.Linear(d_model, d_model, bias=config.bias)
        self.k_proj = nn.Linear(d_model, kv_width, bias=config.bias)
        self.v_proj = nn.Linear(d_model, kv_width, bias=config.bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=config.bias)
        self.inward = JointLinear("q_proj", "k_proj", "v_proj")
        self.outward = JointLinear("o_proj")
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """Normal with deviation 0.02, as GPT-2 and Llama; that of v and o times `gain`."""
        for proj in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            sizes_output = proj is self.v_proj or proj is self.o_proj
            nn.init.normal_(proj.weight, std=0.02 * (gain if sizes_output else 1))
            if proj.bias is not None:
                nn.init.zeros_(proj.bias)

    def flops_per_token(self, seq_len: int) -> int:
        """Scores and sums of values; see `Branch`."""
        return self.config.num_heads * causal_flops(seq_len, self.D_k, self.D_k)

    def state_size(self, tokens: int) -> int:
        """A key and a value for each token; see `Branch`."""
        return 2 * tokens * self.config.kv_heads * self.D_k

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: AttentionState | StaticCache | None,
        layout: Layout,
        form: FormChoice = "auto",  # noqa: ARG002  (a softmax has one form)
    ) -> tuple[Float[Tensor, "B T D"], AttentionState | StaticCache]:
        """Mix T tokens; see `Branch` for the contract."""
        q, k, v = (y.unflatten(-1, (-1, self.D_k)) for y in self.inward(self, x))
        if self.config.position == "rope":
            q, k = self._rotate(q, k, layout)
        if isinstance(state, StaticCache):
            o, state = state.step(q, k, v, layout)
        else:
            o, state = attention(q, k, v, state, layout=layout)
        return self.outward(self, o.flatten(2))[0], state

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.inward.pack(self, weights)
        self.outward.pack(self, weights)

    def open_state(self, state: AttentionState, tokens: int) -> StaticCache:
        """Copy the state and make room for `tokens` more; see `Steps`."""
        return StaticCache.open(state, tokens, self.config.num_heads // self.config.kv_heads)

    def close_state(self, opened: StaticCache) -> AttentionState:
        """Return the plain state again; see `Steps`."""
        return opened.close()

    def _rotate(self, q: Tensor, k: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        config = self.config
        cos, sin = layout.shared(
            ("rotation", "rope", config.rope_base, self.D_k, q.dtype),
            lambda: rotation_tables(layout.positions, "rope", self.D_k, q.dtype, config.rope_base),
        )
        if q.shape[1] > 1:
            return rotate(q, cos, sin, config.pairs), rotate(k, cos, sin, config.pairs)
        # what one token costs is the number of calls
        both = rotate(torch.cat((q, k), 2), cos, sin, config.pairs)
        q, k = torch.split_with_sizes(both, (config.num_heads, config.kv_heads), 2)
        return q, k
