"""Linear attention: parameters around `retnet.ops.linear_attention`."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.branch import ALONE, Depth, chosen_form
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout, retention
from retnet.ops.linear_attention import (
    FeatureMap,
    LinearAttentionState,
    features,
    linear_attention,
)
from retnet.ops.packed_linear import Weights
from retnet.ops.retention.flops import chunkwise_flops
from retnet.ops.rotation import PairLayout, rotate_both, rotation_tables
from retnet.types import FormChoice


class SumState(NamedTuple):
    """What linear attention without a divisor remembers."""

    S: Float[Tensor, "B H D_k D_v"]


@dataclass(frozen=True, kw_only=True)
class LinearAttentionConfig:
    """Linear attention (Katharopoulos et al. 2020, arXiv:2006.16236), retention without decay.

    Attributes:
        num_heads: H, each d_model / H wide.
        feature_map: what becomes of q and k before they meet: `elu` is elu(x) + 1, the paper's;
            `relu`; `exp`; `identity`, which cannot go with `normalize`, as its sums may be zero.
        normalize: divide by the sum of the weights, so that o is a mean of values.
        eps: added to that sum.
        position: `rope` rotates the features of q and k, in the numerator only (Su et al. 2021,
            arXiv:2104.09864, section 3.3); `none` leaves order to the causal mask.
        pairs: which channels rotate together.
        bias: whether the projections have biases.
    """

    num_heads: int
    feature_map: FeatureMap = "elu"
    normalize: bool = True
    eps: float = 1e-6
    position: Literal["none", "rope"] = "none"
    pairs: PairLayout = "half"
    bias: bool = False

    formula: ClassVar[str] = (
        "S_t = S_(t-1) + φ(k_t)ᵀ v_t;  z_t = z_(t-1) + φ(k_t);  o_t = φ(q_t) S_t / (φ(q_t)·z_t + ε)"
    )
    cost: ClassVar[str] = "O(C d + d d_k) in chunks of C / O(d d_k)"
    left_out: ClassVar[str] = (
        "Linformer, which projects along the length and so mixes future tokens into the past; "
        "random features (Performer): another φ"
    )

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"num_heads ({self.num_heads}) must be at least 1")
        if self.normalize and self.feature_map == "identity":
            raise ValueError(
                'feature_map "identity" has weights of either sign, whose sum may be zero: it must '
                "not be normalised; set normalize = false or choose another feature_map"
            )
        if self.eps < 0:
            raise ValueError(f"eps ({self.eps}) must not be negative; 1e-6 is usual")

    def build(self, d_model: int) -> "LinearAttention":
        """Make the layer for a decoder of width `d_model`."""
        return LinearAttention(self, d_model)


class LinearAttention(nn.Module):
    """The layer: project, map to features, mix, project."""

    spans_ranks = True

    def __init__(self, config: LinearAttentionConfig, d_model: int) -> None:
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
        self.q_proj = nn.Linear(d_model, d_model, bias=config.bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=config.bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=config.bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=config.bias)
        self.inward = JointLinear("q_proj", "k_proj", "v_proj")
        self.outward = JointLinear("o_proj")
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """Normal with deviation 0.02, as softmax attention; that of v and o times `gain`."""
        for proj in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            sizes_output = proj is self.v_proj or proj is self.o_proj
            nn.init.normal_(proj.weight, std=0.02 * (gain if sizes_output else 1))
            if proj.bias is not None:
                nn.init.zeros_(proj.bias)

    def flops_per_token(self, seq_len: int) -> int:
        """Those of the chunkwise form; see `Branch`."""
        widths = [self.D_k]  # of the values
        if self.config.normalize:
            widths = [self.D_k, 1] if self.config.position == "rope" else [self.D_k + 1]
        flops = sum(chunkwise_flops(seq_len, self.D_k, D_v) for D_v in widths)
        return self.config.num_heads * flops

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """A matrix per head, and a vector where sums are divided; see `Branch`."""
        return self.config.num_heads * self.D_k * (self.D_k + self.config.normalize)

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.inward.pack(self, weights)
        self.outward.pack(self, weights)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: LinearAttentionState | SumState | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], LinearAttentionState | SumState]:
        """Mix T tokens; see `Branch` for the contract."""
        q, k, v = (y.unflatten(-1, (-1, self.D_k)) for y in self.inward(self, x))
        if x.dtype == torch.float16:  # sums over all tokens overflow it
            q, k, v = q.float(), k.float(), v.float()
        q, k = (features(y, self.config.feature_map) for y in (q, k))
        q = q * self.D_k**-0.5
        rotated = self._rotated(q, k, layout) if self.config.position == "rope" else None
        form = chosen_form(form, x.shape[1])
        if self.config.normalize:
            assert not isinstance(state, SumState)
            o, state = linear_attention(
                q, k, v, state, eps=self.config.eps, rotated=rotated, layout=layout, form=form
            )
        else:
            no_decay = torch.zeros(self.config.num_heads, device=q.device)
            S = None if state is None else state.S
            o, S = retention(*(rotated or (q, k)), v, no_decay, S, layout=layout, form=form)
            state = SumState(S)
        return self.outward(self, o.flatten(2).to(x.dtype))[0], state

    def _rotated(self, q: Tensor, k: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        cos, sin = layout.shared(
            ("rotation", "rope", 10_000.0, self.D_k, q.dtype),
            lambda: rotation_tables(layout.positions, "rope", self.D_k, q.dtype),
        )
        return rotate_both(q, k, (cos, sin, cos, sin), self.config.pairs)
