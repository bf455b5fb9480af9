"""Attention Free Transformer: parameters around `retnet.ops.aft`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.branch import ALONE, Depth
from retnet.mixers.precise import PreciseParameters
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout
from retnet.ops.aft import AFTLocalState, aft_full, aft_local, aft_simple
from retnet.ops.aft.full import BLOCK
from retnet.ops.attention import AttentionState
from retnet.ops.packed_linear import Weights
from retnet.ops.wkv import WKVState
from retnet.types import FormChoice

AFTState = WKVState | AFTLocalState | AttentionState


@dataclass(frozen=True, kw_only=True)
class AFTConfig:
    """Attention Free Transformer (Zhai et al. 2021, arXiv:2105.14103).

    Attributes:
        variant: `full` learns a bias for every pair of positions, and keeps all keys and values;
            `local` learns those of near positions, all others being 0; `simple` has none.
        max_len: tokens of the longest document, for which `full` and `local` have biases; a longer
            one is refused.
        window: how many tokens up to and with the query's `local` has biases for.
        width: of queries, keys and values; None means d_model.
        bias: whether projections have biases; that of keys has none, because it cancels.
    """

    variant: Literal["full", "local", "simple"] = "simple"
    max_len: int | None = None
    window: int | None = None
    width: int | None = None
    bias: bool = False

    formula: ClassVar[str] = (
        "y_t = sigmoid(q_t) ⊙ Σ_(j≤t) exp(k_j + w_tj) ⊙ v_j / Σ_(j≤t) exp(k_j + w_tj); "
        "local: w_tj = 0 for t-j ≥ s; simple: w = 0"
    )
    cost: ClassVar[str] = "simple O(d) / O(d); local O(s d) / O(s d); full O(T d) / O(t d)"
    left_out: ClassVar[str] = (
        "AFT-conv (biases of distances, by heads); biases as a product of low rank"
    )

    def __post_init__(self) -> None:
        needed = {"full": ("max_len",), "local": ("max_len", "window"), "simple": ()}[self.variant]
        for name in ("max_len", "window", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1")
        for name in ("max_len", "window"):
            value = getattr(self, name)
            if name in needed and value is None:
                raise ValueError(
                    f'variant "{self.variant}" needs {name}; set it, or take variant "simple"'
                )
            if name not in needed and value is not None:
                raise ValueError(
                    f'variant "{self.variant}" has no {name} ({value}); leave it out or take '
                    'another variant, "full" or "local"'
                )

    def build(self, d_model: int) -> "AFT":
        """Make the layer for a decoder of width `d_model`."""
        return AFT(self, d_model)


class PositionBiases(PreciseParameters):
    """Of each position of a query, those of keys: exponents, hence float32."""

    precise = ("weight",)
    learning_rates: ClassVar[dict[str, float]] = {"weight": 1.0}  # and no weight decay

    def __init__(self, max_len: int, keys: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(max_len, keys))


class AFT(nn.Module):
    """The layer: project, average, gate, project."""

    def __init__(self, config: AFTConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.max_tokens = config.max_len
        width = config.width or d_model
        self.q_proj = nn.Linear(d_model, width, bias=config.bias)
        self.k_proj = nn.Linear(d_model, width, bias=False)
        self.v_proj = nn.Linear(d_model, width, bias=config.bias)
        self.o_proj = nn.Linear(width, d_model, bias=config.bias)
        self.position_bias = None
        if config.max_len is not None:
            self.position_bias = PositionBiases(config.max_len, config.window or config.max_len)
        alike = not config.bias  # layers with and without biases are not multiplied together
        groups = [["q_proj", "k_proj", "v_proj"]] if alike else [["q_proj", "v_proj"], ["k_proj"]]
        self.inward = tuple(JointLinear(*names) for names in groups)
        self.outward = JointLinear("o_proj")
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """Xavier, v and o times `gain`; no biases of positions."""
        for proj in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            sizes_output = proj is self.v_proj or proj is self.o_proj
            nn.init.xavier_uniform_(proj.weight, gain if sizes_output else 1.0)
            if proj.bias is not None:
                nn.init.zeros_(proj.bias)
        if self.position_bias is not None:
            nn.init.zeros_(self.position_bias.weight)

    @property
    def width(self) -> int:
        """Channels of q, k and v."""
        return self.q_proj.out_features

    def flops_per_token(self, seq_len: int) -> int:
        """Those of `full` between blocks of tokens; see `Branch`."""
        if self.config.variant != "full":
            return 0
        pairs = sum(min(BLOCK, seq_len - past) * past for past in range(0, seq_len, BLOCK))
        return 2 * pairs * 2 * self.width // seq_len

    def state_size(self, tokens: int) -> int:
        """A key and a value for each token, or constant; see `Branch`."""
        if self.config.variant == "full":
            return 2 * tokens * self.width
        near = self.config.window or 0
        return 2 * self.width + 1 + 2 * near * self.width

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        for linear in (*self.inward, self.outward):
            linear.pack(self, weights)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: AFTState | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], AFTState]:
        """Mix T tokens; see `Branch` for the contract. Only `simple` has several forms."""
        if self.config.bias:
            (q, v), (k,) = (linear(self, x) for linear in self.inward)
        else:
            q, k, v = self.inward[0](self, x)
        mean, state = self._mean(k, v, state, layout, form)
        return self.outward(self, q.sigmoid() * mean)[0], state

    def _mean(
        self, k: Tensor, v: Tensor, state: AFTState | None, layout: Layout, form: FormChoice
    ) -> tuple[Tensor, AFTState]:
        if self.position_bias is None:
            assert state is None or isinstance(state, WKVState)
            return aft_simple(k, v, state, layout=layout, form=None if form == "auto" else form)
        bias = self.position_bias.weight
        if self.config.variant == "local":
            assert state is None or isinstance(state, AFTLocalState)
            return aft_local(k, v, bias, state, layout=layout)
        assert state is None or isinstance(state, AttentionState)
        return aft_full(k, v, bias, state, layout=layout)
