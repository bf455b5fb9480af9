"""S4D: parameters around `retnet.ops.diagonal_ssm`."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.mixers.branch import ALONE, Depth, chosen_form
from retnet.mixers.diagonal_systems import DiagonalSystems, check_systems
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout
from retnet.ops.diagonal_ssm import (
    StepTables,
    after_flops,
    diagonal_ssm,
    ssm_step,
    step_tables,
    zero_order_hold,
)
from retnet.ops.documents import by_document
from retnet.ops.packed_linear import Weights
from retnet.types import FormChoice


class S4DState(NamedTuple):
    """One of each conjugate pair of every channel's states, real and imaginary part."""

    h: Float[Tensor, "B D N 2"]


class OpenedS4D(NamedTuple):
    """A state for single tokens, with what they are multiplied with, the same for all rows."""

    h: Float[Tensor, "B D N 2"]
    a: Complex[Tensor, "B D N"]
    b: Complex[Tensor, "B D N"]
    c: Complex[Tensor, "B D N"]


@dataclass(frozen=True, kw_only=True)
class S4DConfig:
    """S4D, a diagonal state-space system per channel (Gu et al. 2022, arXiv:2206.11893).

    Attributes:
        state_size: states of each channel, conjugate pairs counted as two.
        step_min: Δ begins between this, in which a channel hardly forgets,
        step_max: and this; log-uniform.
    """

    formula: ClassVar[str] = (
        "h_t = e^(ΔA) h_(t-1) + A⁻¹(e^(ΔA) - 1) x_t, y = GLU(GELU(2 Re(C h) + D x) W_o)"
    )
    cost: ClassVar[str] = "O(D (log T + N)) / O(D N), N states of a channel"
    left_out: ClassVar[str] = (
        "The full S4 (diagonal plus low rank, a Cauchy kernel): its authors found the diagonal to "
        "do as well. S5, one system with many inputs: LRU is S5 without step sizes."
    )

    state_size: int = 64
    step_min: float = 1e-3
    step_max: float = 0.1

    def __post_init__(self) -> None:
        check_systems(self.state_size, self.step_min, self.step_max)

    def build(self, d_model: int) -> "S4D":
        """Make the layer for a decoder of width `d_model`."""
        return S4D(self, d_model)


class S4D(nn.Module):
    """The layer: systems, GELU, gated linear unit."""

    def __init__(self, config: S4DConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.systems = DiagonalSystems(d_model, config.state_size)
        self.D = nn.Parameter(torch.empty(d_model))
        self.o_proj = nn.Linear(d_model, 2 * d_model)
        self.outward = JointLinear("o_proj")
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """S4D-Lin, D normal; PyTorch's default for the linear layer."""
        self.systems.reset(self.config.step_min, self.config.step_max)
        nn.init.normal_(self.D)
        self.o_proj.reset_parameters()
        with torch.no_grad():
            for parameter in (self.o_proj.weight, self.o_proj.bias):
                parameter[: len(self.D)].mul_(gain)  # the other half gates it

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """Two numbers for each pair; see `Branch`."""
        return len(self.D) * self.config.state_size

    def flops_per_token(self, seq_len: int) -> int:
        """Those of the state after the row; see `Branch`. An FFT is no matrix product."""
        return len(self.D) * after_flops(seq_len, self.config.state_size // 2)

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.outward.pack(self, weights)

    def open_state(self, state: S4DState, tokens: int) -> OpenedS4D:  # noqa: ARG002
        """Bring the systems into discrete time once; see `Steps`."""
        tables = step_tables(self.systems(zero_order_hold))
        return OpenedS4D(state.h, *(table.expand(len(state.h), -1, -1) for table in tables))

    def close_state(self, opened: OpenedS4D) -> S4DState:
        """Without the tables; see `Steps`."""
        return S4DState(opened.h)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: S4DState | OpenedS4D | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], S4DState | OpenedS4D]:
        """Mix T tokens; see `Branch` for the contract. Chunkwise is parallel: one FFT."""
        if isinstance(state, OpenedS4D):
            tables = StepTables(state.a[0], state.b[0], state.c[0])
            y, plain = self.mix(x, self.close_state(state), tables=tables)
            after = OpenedS4D(plain.h, *state[1:])
        else:
            y, after = by_document(partial(self.mix, form=form), x, state, layout)
        a, b = self.outward(self, F.gelu(y).to(x.dtype))[0].chunk(2, -1)
        return a * b.sigmoid(), after

    def mix(
        self,
        x: Float[Tensor, "B T D"],
        state: S4DState | None = None,
        length: Int[Tensor, " B"] | None = None,
        form: FormChoice = "auto",
        tables: StepTables | None = None,
    ) -> tuple[Float[Tensor, "B T D"], S4DState]:
        """Pass each channel through its system, in float32 or better; by tables a single token."""
        form = chosen_form(form, x.shape[1])
        h = None if state is None else state.h[:, :, None]
        with torch.autocast(x.device.type, enabled=False):
            u = x[..., None]
            if tables is not None and h is not None:
                y, h = ssm_step(u, tables, h)
            else:
                ssm = self.systems(zero_order_hold)
                y, h = diagonal_ssm(u, ssm, h, length=length, form=form)
            return y[..., 0] + self.D.to(y.dtype) * x, S4DState(h[:, :, 0])
