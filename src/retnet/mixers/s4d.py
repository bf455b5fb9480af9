"""S4D: parameters around `retnet.ops.diagonal_ssm`."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.mixers.branch import ALONE, Depth
from retnet.mixers.precise import PreciseParameters
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout
from retnet.ops.diagonal_ssm import DiagonalSSM, after_flops, diagonal_ssm, zero_order_hold
from retnet.ops.documents import by_document
from retnet.ops.packed_linear import Weights
from retnet.types import FormChoice


class S4DState(NamedTuple):
    """One of each conjugate pair of every channel's states, real and imaginary part."""

    h: Float[Tensor, "B D N 2"]


@dataclass(frozen=True, kw_only=True)
class S4DConfig:
    """S4D, a diagonal state-space system per channel (Gu et al. 2022, arXiv:2206.11893).

    Attributes:
        state_size: states of each channel, conjugate pairs counted as two.
        step_min: Δ begins between this, in which a channel hardly forgets,
        step_max: and this; log-uniform.
    """

    formula: ClassVar[str] = "h' = A h + u by zero-order hold, y = 2 Re(C·h) + D u, W GLU(GELU(y))"
    cost: ClassVar[str] = "O(log T d + N d + d²) / O(N d + d²)"
    left_out: ClassVar[str] = (
        "The full S4 (diagonal plus low rank, a Cauchy kernel): its authors found the diagonal to "
        "do as well. S5, one system with many inputs: LRU is S5 without step sizes."
    )

    state_size: int = 64
    step_min: float = 1e-3
    step_max: float = 0.1

    def __post_init__(self) -> None:
        check_system(self.state_size, self.step_min, self.step_max)

    def build(self, d_model: int) -> "S4D":
        """Make the layer for a decoder of width `d_model`."""
        return S4D(self, d_model)


def check_system(state_size: int, step_min: float, step_max: float) -> None:
    """Refuse sizes that no diagonal system has."""
    if state_size < 2 or state_size % 2:
        raise ValueError(
            f"state_size ({state_size}) must be even and at least 2, because states come in "
            "conjugate pairs; 64 is usual"
        )
    if not 0 < step_min <= step_max:
        raise ValueError(
            f"step_min ({step_min}) and step_max ({step_max}) must be positive and in this order; "
            "0.001 and 0.1 are usual"
        )


class S4D(PreciseParameters, nn.Module):
    """The layer: systems, GELU, gated linear unit."""

    precise = ("log_step", "log_decay_rate", "frequency", "C")
    learning_rates: ClassVar[dict[str, float]] = {
        "log_step": 0.1,
        "log_decay_rate": 0.1,
        "frequency": 0.1,
    }

    def __init__(self, config: S4DConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.N = config.state_size // 2
        self.log_step = nn.Parameter(torch.empty(d_model))
        self.log_decay_rate = nn.Parameter(torch.empty(d_model, self.N))  # log(-Re A)
        self.frequency = nn.Parameter(torch.empty(d_model, self.N))  # Im A
        self.C = nn.Parameter(torch.empty(d_model, self.N, 2))
        self.D = nn.Parameter(torch.empty(d_model))
        self.o_proj = nn.Linear(d_model, 2 * d_model)
        self.outward = JointLinear("o_proj")
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """S4D-Lin: A_n = -1/2 + iπn; C and D normal; PyTorch's default for the linear layer."""
        with torch.no_grad():
            reset_steps(self.log_step, self.config.step_min, self.config.step_max)
            reset_eigenvalues(self.log_decay_rate, self.frequency)
            self.C.normal_(std=0.5**0.5)
            self.D.normal_()
            self.o_proj.reset_parameters()
            for parameter in (self.o_proj.weight, self.o_proj.bias):
                parameter[: len(self.D)].mul_(gain)  # the other half gates it

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """Two numbers for each pair; see `Branch`."""
        return 2 * self.C.shape[0] * self.N

    def flops_per_token(self, seq_len: int) -> int:
        """Those of the state after the row; see `Branch`. The FFT is no matrix product."""
        return len(self.D) * after_flops(seq_len, self.N)

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.outward.pack(self, weights)

    def systems(self) -> DiagonalSSM:
        """Every channel's, in discrete time."""
        A = torch.complex(-self.log_decay_rate.exp(), self.frequency)
        step = self.log_step.exp()[:, None]
        return zero_order_hold(A, torch.ones_like(A), torch.view_as_complex(self.C), step)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: S4DState | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], S4DState]:
        """Mix T tokens; see `Branch` for the contract. Chunkwise is parallel: one FFT."""
        y, after = by_document(partial(self.mix, form=form), x, state, layout)
        a, b = self.outward(self, F.gelu(y).to(x.dtype))[0].chunk(2, -1)
        return a * b.sigmoid(), after

    def mix(
        self,
        x: Float[Tensor, "B T D"],
        state: S4DState | None = None,
        length: Int[Tensor, " B"] | None = None,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], S4DState]:
        """Pass each channel through its system, in float32 or better."""
        if form == "auto":
            form = "recurrent" if x.shape[1] == 1 else "chunkwise"
        h = None if state is None else state.h[:, :, None]
        with torch.autocast(x.device.type, enabled=False):
            y, h = diagonal_ssm(x[..., None], self.systems(), h, length=length, form=form)
            return y[..., 0] + self.D.to(y.dtype) * x, S4DState(h[:, :, 0])


def reset_steps(log_step: Tensor, step_min: float, step_max: float) -> None:
    """Draw Δ log-uniformly."""
    log_step.uniform_(math.log(step_min), math.log(step_max))


def reset_eigenvalues(log_decay_rate: Tensor, frequency: Tensor) -> None:
    """S4D-Lin, of every system alike: -1/2 + iπn."""
    log_decay_rate.fill_(math.log(0.5))
    frequency.copy_(math.pi * torch.arange(frequency.shape[-1]))
