"""Learned diagonal state-space systems: what S4D and H3 have in common."""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.precise import PreciseParameters
from retnet.ops.diagonal_ssm import DiagonalSSM


class DiagonalSystems(PreciseParameters, nn.Module):
    """A system for each head, in continuous time, with a step size.

    What keeps `Re A` below zero is that its logarithm is learned.
    """

    precise = ("log_step", "log_decay_rate", "frequency", "C")
    learning_rates: ClassVar[dict[str, float]] = {
        "log_step": 0.1,
        "log_decay_rate": 0.1,
        "frequency": 0.1,
    }

    def __init__(self, heads: int, state_size: int) -> None:
        super().__init__()
        shape = heads, state_size // 2
        self.log_step = nn.Parameter(torch.empty(heads))
        self.log_decay_rate = nn.Parameter(torch.empty(shape))  # log(-Re A)
        self.frequency = nn.Parameter(torch.empty(shape))  # Im A
        self.C = nn.Parameter(torch.empty(*shape, 2))

    def reset(self, step_min: float, step_max: float) -> None:
        """S4D-Lin: A_n = -1/2 + iπn, C normal; steps log-uniform between the two given."""
        with torch.no_grad():
            self.log_step.uniform_(math.log(step_min), math.log(step_max))
            self.log_decay_rate.fill_(math.log(0.5))
            self.frequency.copy_(math.pi * torch.arange(self.frequency.shape[-1]))
            self.C.normal_(std=0.5**0.5)

    def forward(
        self, rule: Callable[..., DiagonalSSM], B: Float[Tensor, "H N 2"] | None = None
    ) -> DiagonalSSM:
        """The systems in discrete time, by a rule of `retnet.ops.diagonal_ssm`; B None is one."""
        A = torch.complex(-self.log_decay_rate.exp(), self.frequency)
        inputs = torch.ones_like(A) if B is None else torch.view_as_complex(B)
        return rule(A, inputs, torch.view_as_complex(self.C), self.log_step.exp()[:, None])


def check_systems(state_size: int, step_min: float, step_max: float) -> None:
    """Refuse what no such systems have."""
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
