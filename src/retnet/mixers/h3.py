"""H3: parameters around `retnet.ops.long_conv` and `retnet.ops.diagonal_ssm`."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from retnet.mixers.branch import ALONE, Depth, chosen_form
from retnet.mixers.diagonal_systems import DiagonalSystems, check_systems
from retnet.mixers.precise import PreciseParameters
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout
from retnet.ops.diagonal_ssm import (
    StepTables,
    after_flops,
    bilinear,
    diagonal_ssm,
    ssm_step,
    step_tables,
)
from retnet.ops.documents import by_document, newest
from retnet.ops.long_conv import long_conv
from retnet.ops.packed_linear import Weights
from retnet.types import FormChoice


class H3State(NamedTuple):
    """The last keys, and the states of every pair of a head's channels: always as large."""

    k: Float[Tensor, "B past D"]
    h: Float[Tensor, "B H pairs N 2"]


class OpenedH3(NamedTuple):
    """A state for single tokens, with what they are multiplied with, the same for all rows."""

    k: Float[Tensor, "B past D"]
    h: Float[Tensor, "B H pairs N 2"]
    a: Complex[Tensor, "B H N"]
    b: Complex[Tensor, "B H N"]
    c: Complex[Tensor, "B H N"]


@dataclass(frozen=True, kw_only=True)
class H3Config:
    """H3, "hungry hungry hippos" (Fu et al. 2022, arXiv:2212.14052, section 3).

    Attributes:
        head_dim: p, channels of each head, of which each key channel meets each value channel.
        state_size: states of each head's diagonal system, conjugate pairs counted as two.
        shift_taps: how many keys, from the newest back, the shift system weighs.
        step_min: Δ begins between this, in which a system hardly forgets,
        step_max: and this; log-uniform.
    """

    formula: ClassVar[str] = (
        "k' = SSM_shift(k) + d₁ k, o = qᵀ (SSM_diag(k' vᵀ) + d₂ k' vᵀ), y = o W_o"
    )
    cost: ClassVar[str] = (
        "O(D p (log T + N)) / O(D (p N + taps)), p channels of a head, N states of each pair"
    )
    left_out: ClassVar[str] = "The two attention layers of the paper's hybrid: a config has them."

    head_dim: int = 8
    state_size: int = 64
    shift_taps: int = 64
    step_min: float = 1e-3
    step_max: float = 0.1

    def __post_init__(self) -> None:
        check_systems(self.state_size, self.step_min, self.step_max)
        if self.head_dim < 1:
            raise ValueError(f"head_dim ({self.head_dim}) must be at least 1; 8 is usual")
        if self.shift_taps < 2:
            raise ValueError(
                f"shift_taps ({self.shift_taps}) must be at least 2, the newest key and the one "
                "before it; 64 is usual"
            )

    def build(self, d_model: int) -> "H3":
        """Make the layer for a decoder of width `d_model`."""
        return H3(self, d_model)


class H3(PreciseParameters, nn.Module):
    """The layer: project, shift the keys, remember key times value, ask, project."""

    precise = ("B",)
    learning_rates: ClassVar[dict[str, float]] = {"B": 0.1}

    def __init__(self, config: H3Config, d_model: int) -> None:
        super().__init__()
        self.config = config
        if d_model % config.head_dim:
            raise ValueError(
                f"d_model ({d_model}) must be a multiple of head_dim ({config.head_dim}); change "
                "one of them"
            )
        heads = d_model // config.head_dim
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.o_proj = nn.Linear(d_model, d_model)
        self.shift = nn.Parameter(torch.empty(d_model, config.shift_taps))
        self.shift_skip = nn.Parameter(torch.empty(d_model))
        self.systems = DiagonalSystems(heads, config.state_size)
        self.B = nn.Parameter(torch.empty(heads, config.state_size // 2, 2))
        self.skip = nn.Parameter(torch.empty(heads))
        self.inward = JointLinear("q_proj", "k_proj", "v_proj")
        self.outward = JointLinear("o_proj")
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """S4D-Lin, B one, skips normal, taps as a convolution's; PyTorch's for linear layers."""
        for proj in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            proj.reset_parameters()
        self.systems.reset(self.config.step_min, self.config.step_max)
        bound = self.config.shift_taps**-0.5
        nn.init.uniform_(self.shift, -bound, bound)
        nn.init.normal_(self.shift_skip)
        nn.init.normal_(self.skip)
        with torch.no_grad():
            self.B.copy_(torch.tensor([1.0, 0.0]))
            self.o_proj.weight.mul_(gain)

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """Keys, and two numbers for each conjugate pair; see `Branch`."""
        config = self.config
        numbers = config.shift_taps - 1 + config.head_dim * config.state_size
        return len(self.shift_skip) * numbers

    def flops_per_token(self, seq_len: int) -> int:
        """Those of the state after the row; see `Branch`. An FFT is no matrix product."""
        systems = len(self.shift_skip) * self.config.head_dim
        return systems * after_flops(seq_len, self.config.state_size // 2)

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.inward.pack(self, weights)
        self.outward.pack(self, weights)

    def open_state(self, state: H3State, tokens: int) -> OpenedH3:  # noqa: ARG002
        """Bring the systems into discrete time once; see `Steps`."""
        tables = step_tables(self.systems(bilinear, self.B))
        return OpenedH3(*state, *(table.expand(len(state.h), -1, -1) for table in tables))

    def close_state(self, opened: OpenedH3) -> H3State:
        """Without the tables; see `Steps`."""
        return H3State(opened.k, opened.h)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: H3State | OpenedH3 | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], H3State | OpenedH3]:
        """Mix T tokens; see `Branch` for the contract. Chunkwise is parallel: FFTs."""
        qkv = torch.stack(self.inward(self, x), 2)
        if isinstance(state, OpenedH3):
            tables = StepTables(state.a[0], state.b[0], state.c[0])
            o, plain = self.mix(qkv, self.close_state(state), tables=tables)
            after = OpenedH3(*plain, *state[2:])
        else:
            o, after = by_document(partial(self.mix, form=form), qkv, state, layout)
        return self.outward(self, o.to(x.dtype))[0], after

    def mix(
        self,
        qkv: Float[Tensor, "B T 3 D"],
        state: H3State | None = None,
        length: Int[Tensor, " B"] | None = None,
        form: FormChoice = "auto",
        tables: StepTables | None = None,
    ) -> tuple[Float[Tensor, "B T D"], H3State]:
        """Shift, outer product, diagonal systems and query, in float32 or better.

        By tables, if there are any, a single token.
        """
        p = self.config.head_dim
        form = chosen_form(form, qkv.shape[1])
        with torch.autocast(qkv.device.type, enabled=False):
            q, k, v = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).unbind(2)
            past = k.new_zeros(len(k), self.config.shift_taps - 1, k.shape[2])
            past = past if state is None else state.k
            shift_form = "direct" if form == "recurrent" else "fft"
            shifted = long_conv(k, self.shift.to(k.dtype).mT, past, form=shift_form)
            shifted = shifted + self.shift_skip.to(k.dtype) * k
            # time last in memory, as transforms need it: the rest of the layer is elementwise
            heads = (y.unflatten(-1, (-1, p)).permute(0, 2, 3, 1) for y in (q, shifted, v))
            q, shifted, v = (y.contiguous() for y in heads)  # B H p T
            kv = (shifted[:, :, :, None] * v[:, :, None]).flatten(2, 3)  # B H p*p T
            kv = kv.permute(0, 3, 1, 2)  # B T H p*p
            h = None if state is None else state.h
            if tables is not None and h is not None:
                s, h = ssm_step(kv, tables, h)
            else:
                ssm = self.systems(bilinear, self.B)
                s, h = diagonal_ssm(kv, ssm, h, length=length, form=form)
            s = s.permute(0, 2, 3, 1).unflatten(2, (p, p))  # B H p p T
            o = (q[:, :, :, None] * s).sum(2)
            # the skip is summed last: sum_i q_i k_i v_j = (q . k) v_j
            o = o + self.skip.to(k.dtype)[:, None, None] * (q * shifted).sum(2, keepdim=True) * v
            o = o.permute(0, 3, 1, 2).flatten(2)  # B T D
            return o, H3State(newest(past, k, length), h)
