"""Gated attention unit: parameters around one head of attention."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.branch import ALONE, Depth
from retnet.mixers.gated_unit import GatedUnit, UnitInit, check_widths, rotated
from retnet.ops import Layout, attention
from retnet.ops.attention import AttentionState, StaticCache
from retnet.ops.attention.flops import causal_flops
from retnet.ops.attention.temperature import log_n_scale
from retnet.ops.packed_linear import Weights
from retnet.ops.pointwise_attention import pointwise_attention
from retnet.ops.rotation import PairLayout
from retnet.types import FormChoice

FULL_SCALE = 512
"""Visible keys at which softmax_plus is a plain softmax: the length of texts in Su's training."""


@dataclass(frozen=True, kw_only=True)
class GAUConfig:
    """Gated attention unit (Hua et al. 2022, arXiv:2202.10447), and GAU-α (Su 2022).

    It mixes tokens and channels: a layer has no channel mixer beside it, and two of them are as
    large as attention with its feed-forward network. GAU-α is the default here in a decoder with
    `residual = "post"`, `norm_weight = false` and `norm_eps = 1e-12`.

    Attributes:
        width: e, of values and gates; None means 2 d_model.
        key_width: s, of queries and keys.
        kernel: weights of scores: `softmax_plus`, a softmax of scores times log l / log 512 for l
            visible keys (kexue.fm/archives/9019); `relu2`, the paper's; `laplace`.
        n: what relu2's weights and laplace's scores are divided by: a constant, such as the length
            of texts in training; None means how many keys are visible. (The paper's code takes the
            length of the row, which makes an output depend on how many tokens follow.)
        floor: the least l that softmax_plus counts; 16 in Su's own code.
        position: `rope` rotates queries and keys; `none` leaves order to the causal mask.
        pairs: which channels rotate together.
        bias: whether projections have biases, and queries and keys offsets.
        init: `gau_alpha`, or the paper's (`GatedUnit.reset_parameters`).
    """

    width: int | None = None
    key_width: int = 128
    kernel: Literal["softmax_plus", "relu2", "laplace"] = "softmax_plus"
    n: int | None = None
    floor: int = 1
    position: Literal["rope", "none"] = "rope"
    pairs: PairLayout = "half"
    bias: bool = False
    init: UnitInit = "gau_alpha"

    formula: ClassVar[str] = (
        "[u, v, z] = swish(x W);  q, k = affine(z);  y = (u ⊙ A v) W_o;  "
        "A = softmax(q kᵀ/√s · log l / log 512) or relu²(q kᵀ/√s)/n"
    )
    cost: ClassVar[str] = "O(T (s + e)) / O(t (s + e))"
    left_out: ClassVar[str] = (
        "additive biases of distances (T5's); n = length of the row, which is not causal"
    )

    def __post_init__(self) -> None:
        check_widths(self.width, self.key_width, self.position == "rope")
        if self.n is not None and (self.n < 1 or self.kernel == "softmax_plus"):
            raise ValueError(
                f"n ({self.n}) must be a positive number, and softmax_plus counts what is visible: "
                'leave it out, or set kernel = "relu2"'
            )
        if self.floor < 1 or (self.floor > 1 and self.kernel != "softmax_plus"):
            raise ValueError(
                f"floor ({self.floor}) must be at least 1 and belongs to softmax_plus; leave it "
                f'out with kernel "{self.kernel}"'
            )

    def build(self, d_model: int) -> "GAU":
        """Make the layer for a decoder of width `d_model`."""
        return GAU(self, d_model)


class GAU(nn.Module):
    """The layer: project, rotate, mix, gate, project."""

    def __init__(self, config: GAUConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.width = config.width or 2 * d_model
        self.unit = GatedUnit(d_model, self.width, config.key_width, 2, config.bias)
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:
        """As `init` says; see `GatedUnit`."""
        self.unit.reset_parameters(gain, depth, self.config.init)

    def flops_per_token(self, seq_len: int) -> int:
        """Scores and sums of values; see `Branch`."""
        return causal_flops(seq_len, self.config.key_width, self.width)

    def state_size(self, tokens: int) -> int:
        """A key and a value for each token; see `Branch`."""
        return tokens * (self.config.key_width + self.width)

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.unit.pack(weights)

    def open_state(self, state: AttentionState, tokens: int) -> AttentionState | StaticCache:
        """Make room for steps where PyTorch's softmax reads them; see `Steps`."""
        return StaticCache.open(state, tokens) if self._is_softmax else state

    def close_state(self, opened: AttentionState | StaticCache) -> AttentionState:
        """Return the plain state again; see `Steps`."""
        return opened.close() if isinstance(opened, StaticCache) else opened

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: AttentionState | StaticCache | None,
        layout: Layout,
        form: FormChoice = "auto",  # noqa: ARG002  (scores have one form)
    ) -> tuple[Float[Tensor, "B T D"], AttentionState | StaticCache]:
        """Mix T tokens; see `Branch` for the contract."""
        u, v, z = self.unit.inward(x)
        if self.config.position == "rope":
            z = rotated(z, layout, self.config.pairs)
        o, state = self.mix(z[:, :, 0], z[:, :, 1], v, state, layout)
        return self.unit.output(u, o), state

    def mix(
        self,
        q: Float[Tensor, "B T D_k"],
        k: Float[Tensor, "B T D_k"],
        v: Float[Tensor, "B T E"],
        state: AttentionState | StaticCache | None,
        layout: Layout,
    ) -> tuple[Float[Tensor, "B T E"], AttentionState | StaticCache]:
        """`A v` for rotated queries and keys."""
        q = q * self.scale(layout).to(q.dtype)
        if not self._is_softmax:
            assert not isinstance(state, StaticCache)
            kernel = self.config.kernel
            return pointwise_attention(q, k, v, state, kernel=kernel, layout=layout)  # type: ignore[arg-type]
        q, k, v = (y[:, :, None] for y in (q, k, v))
        if isinstance(state, StaticCache):
            o, after = state.step(q, k, v, layout)
        else:
            o, after = attention(q, k, v, state, layout=layout)
            assert isinstance(after, AttentionState)
        return o[:, :, 0], after

    def scale(self, layout: Layout) -> Float[Tensor, "rows T 1"]:
        """What each query is multiplied by, float64; attention divides by √s on its own."""
        config = self.config

        def build() -> Tensor:
            visible = layout.positions + 1
            if self._is_softmax:
                return log_n_scale(visible.clamp(min=config.floor), FULL_SCALE, "always")[..., None]
            n = visible if config.n is None else torch.full_like(visible, config.n)
            n = n[..., None].double()
            return (n * config.key_width).rsqrt() if config.kernel == "relu2" else 1 / n

        return layout.shared(
            ("gau scale", config.kernel, config.n, config.floor, config.key_width), build
        )

    @property
    def _is_softmax(self) -> bool:
        return self.config.kernel == "softmax_plus"
