"""FLASH: parameters around `retnet.ops.mixed_chunk`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.branch import ALONE, Depth, chosen_form
from retnet.mixers.gated_unit import GatedUnit, UnitInit, check_widths, rotated
from retnet.ops import Layout
from retnet.ops.mixed_chunk import MixedChunkState, mixed_chunk
from retnet.ops.packed_linear import Weights
from retnet.ops.retention.flops import product_flops
from retnet.ops.rotation import PairLayout
from retnet.types import FormChoice


@dataclass(frozen=True, kw_only=True)
class FLASHConfig:
    """FLASH, a gated unit with mixed chunk attention (Hua et al. 2022, arXiv:2202.10447).

    It mixes tokens and channels: a layer has no channel mixer beside it, and two of them are as
    large as attention with its feed-forward network.

    Attributes:
        width: e, of values and gates; None means 2 d_model.
        key_width: s, of queries and keys.
        chunk: C, tokens whose pairs are compared; of earlier chunks a sum is left.
        normalizer: what that sum is divided by: `tokens`, how many it has (kexue.fm/archives/8934),
            or `chunk`, C, as in the paper's code, by which it grows along a text.
        position: `rope` rotates queries and keys; `none` leaves order to the causal mask.
        pairs: which channels rotate together.
        bias: whether projections have biases, and queries and keys offsets.
        init: `gau_alpha`, or the paper's `gau` (`GatedUnit.reset_parameters`).
    """

    width: int | None = None
    key_width: int = 128
    chunk: int = 256
    normalizer: Literal["tokens", "chunk"] = "tokens"
    position: Literal["rope", "none"] = "rope"
    pairs: PairLayout = "half"
    bias: bool = False
    init: UnitInit = "gau_alpha"

    formula: ClassVar[str] = (
        "[u, v, z] = swish(x W);  q, k, q', k' = affine(z);  "
        "S_g = Σ k'_jᵀ v_j over chunks before g;  y = (u ⊙ (relu²(q kᵀ/√s)/C v + q' S_g/(g C))) W_o"
    )
    cost: ClassVar[str] = "O(C (s + e) + s e) / O(C (s + e) + s e)"
    left_out: ClassVar[str] = "the bidirectional form; additive biases of distances; token shift"

    def __post_init__(self) -> None:
        check_widths(self.width, self.key_width, self.position == "rope")
        if self.chunk < 1:
            raise ValueError(f"chunk ({self.chunk}) must be at least 1; 256 is usual")

    def build(self, d_model: int) -> "FLASH":
        """Make the layer for a decoder of width `d_model`."""
        return FLASH(self, d_model)


class FLASH(nn.Module):
    """The layer: project, rotate, mix, gate, project."""

    def __init__(self, config: FLASHConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.width = config.width or 2 * d_model
        self.unit = GatedUnit(d_model, self.width, config.key_width, 4, config.bias)
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:
        """As `init` says; see `GatedUnit`."""
        self.unit.reset_parameters(gain, depth, self.config.init)

    def flops_per_token(self, seq_len: int) -> int:
        """Those of the chunkwise form; see `Branch`."""
        C = min(self.config.chunk, seq_len)
        tokens = -(-seq_len // C) * C  # an open chunk is computed as a full one
        return tokens * product_flops(C, self.config.key_width, self.width) // seq_len

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """Sums of closed chunks and of the open one, and its keys and values; see `Branch`."""
        s, e = self.config.key_width, self.width
        return 2 * s * e + self.config.chunk * (s + e)

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.unit.pack(weights)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MixedChunkState | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], MixedChunkState]:
        """Mix T tokens; see `Branch` for the contract."""
        u, v, z = self.unit.inward(x)
        if self.config.position == "rope":
            z = rotated(z, layout, self.config.pairs)
        if x.dtype == torch.float16:  # sums over all tokens overflow it
            z, v = z.float(), v.float()
        q = z[:, :, :2] * self.scale(layout).to(z.dtype)
        chunk, form = self.config.chunk, chosen_form(form, x.shape[1])
        o, state = mixed_chunk(q, z[:, :, 2:], v, state, chunk=chunk, layout=layout, form=form)
        return self.unit.output(u, o), state

    def scale(self, layout: Layout) -> Float[Tensor, "rows T 2 1"]:
        """What queries for pairs and for sums are multiplied by, float64."""
        C, s, rule = self.config.chunk, self.config.key_width, self.config.normalizer

        def build() -> Tensor:
            before = layout.positions.double() // C * C  # tokens in closed chunks
            summed = before.clamp(min=1) if rule == "tokens" else torch.full_like(before, C)
            pairs = torch.full_like(before, s * C)  # the root of what their squares are divided by
            return torch.stack([pairs.rsqrt(), 1 / summed], -1)[..., None]

        return layout.shared(("flash scale", C, s, rule), build)
