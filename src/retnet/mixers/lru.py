"""Linear recurrent unit: a diagonal recurrence between two linear layers."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.mixers.branch import ALONE, Depth, chosen_form
from retnet.mixers.precise import PreciseParameters
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout, linear_recurrence
from retnet.ops.packed_linear import Weights
from retnet.types import FormChoice


class LRUState(NamedTuple):
    """What the units hold after the last token; complex ones as (real, imaginary)."""

    h: Float[Tensor, "B N *parts"]


@dataclass(frozen=True, kw_only=True)
class LRUConfig:
    """Linear recurrent unit (Orvieto et al. 2023, arXiv:2303.06349).

    Attributes:
        state_width: N, units of the recurrence; None means d_model complex or 2 d_model real ones,
            which have the same number of parameters.
        recurrence: complex factors, or real ones (SLRU).
        skip: add x times a learned weight of each channel.
        block: `linear` ends with the output layer, as language models have it; `glu` is the paper's
            block for classification, whose outputs pass a GELU and a gated linear unit.
        r_min: least size of a new factor, at least 0.
        r_max: its largest size, below 1.
        max_phase: its largest angle, in radians.
    """

    formula: ClassVar[str] = (
        "h_t = λ ⊙ h_(t-1) + γ ⊙ B x_t,  y_t = Re(C h_t),  λ = exp(-exp(ν) + i exp(θ))"
    )
    cost: ClassVar[str] = "O(N) / O(N)"
    left_out: ClassVar[str] = ""

    state_width: int | None = None
    recurrence: Literal["complex", "real"] = "complex"
    skip: bool = False
    block: Literal["linear", "glu"] = "linear"
    r_min: float = 0.9
    r_max: float = 0.999
    max_phase: float = 2 * math.pi

    def __post_init__(self) -> None:
        if self.state_width is not None and self.state_width < 1:
            raise ValueError(f"state_width ({self.state_width}) must be at least 1")
        if not 0 <= self.r_min < self.r_max < 1:
            raise ValueError(
                f"r_min ({self.r_min}) and r_max ({self.r_max}) must be sizes of factors, "
                "0 <= r_min < r_max < 1"
            )
        if not 0 < self.max_phase <= 2 * math.pi:
            raise ValueError(
                f"max_phase ({self.max_phase}) must be an angle above 0 and at most 2 pi"
            )

    def build(self, d_model: int) -> "LRU":
        """Make the layer for a decoder of width `d_model`."""
        return LRU(self, d_model)


class LRU(PreciseParameters):
    """Project, remember, project; a gated linear unit behind it in the paper's block.

    A complex unit takes two neighbouring outputs of `in_proj` as real and imaginary part, and gives
    its own two to `out_proj`, whose weights for it are (Re C, -Im C).
    """

    precise: ClassVar[tuple[str, ...]] = ("nu_log", "theta_log", "gamma_log")
    learning_rates: ClassVar[dict[str, float]] = {"nu_log": 0.5, "theta_log": 0.5, "gamma_log": 0.5}

    def __init__(self, config: LRUConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        complex_ = config.recurrence == "complex"
        self.N = config.state_width or (d_model if complex_ else 2 * d_model)
        self.parts = 2 if complex_ else 1
        self.in_proj = nn.Linear(d_model, self.parts * self.N, bias=False)
        self.nu_log = nn.Parameter(torch.empty(self.N))
        self.theta_log = nn.Parameter(torch.empty(self.N)) if complex_ else None
        self.gamma_log = nn.Parameter(torch.empty(self.N))
        self.out_proj = nn.Linear(self.parts * self.N, d_model, bias=False)
        self.skip_weight = nn.Parameter(torch.empty(d_model)) if config.skip else None
        self.value_proj = nn.Linear(d_model, d_model) if config.block == "glu" else None
        self.gate_proj = nn.Linear(d_model, d_model) if config.block == "glu" else None
        self.inward = JointLinear("in_proj")
        self.outward = JointLinear("out_proj")
        self.gated = JointLinear("value_proj", "gate_proj")
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """Factors uniform on a ring of the complex plane, and gamma so that h is as large as B x.

        Source:
            Section 3.4 of the paper: lemma 3.2 for the ring, equation 7 for gamma.
        """
        config = self.config
        nn.init.normal_(self.in_proj.weight, std=(self.parts * self.in_proj.in_features) ** -0.5)
        last = self.value_proj is None
        nn.init.normal_(self.out_proj.weight, std=self.N**-0.5 * (gain if last else 1.0))
        with torch.no_grad():
            low, high = config.r_min**2, config.r_max**2
            squared = low + (high - low) * torch.rand_like(self.nu_log)  # of |λ|
            self.nu_log.copy_((-0.5 * squared.log()).log())
            self.gamma_log.copy_(0.5 * torch.log1p(-squared))
            if self.theta_log is not None:
                self.theta_log.copy_((config.max_phase * torch.rand_like(self.theta_log)).log())
        if self.skip_weight is not None:
            nn.init.normal_(self.skip_weight, std=gain if last else 1.0)
        if self.value_proj is not None and self.gate_proj is not None:
            for proj in (self.value_proj, self.gate_proj):
                proj.reset_parameters()
                nn.init.zeros_(proj.bias)
            self.value_proj.weight.data.mul_(gain)

    def flops_per_token(self, seq_len: int) -> int:  # noqa: ARG002
        """None but its linear layers'; see `Branch`."""
        return 0

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """The units, whatever was read; see `Branch`."""
        return self.parts * self.N

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.inward.pack(self, weights)
        self.outward.pack(self, weights)
        if self.value_proj is not None:
            self.gated.pack(self, weights)

    def factors(self) -> Tensor:
        """λ of each unit, complex or real, smaller than 1 whatever was learned.

        ν is read within the limits in which |λ| is neither 1 nor 0 after rounding.
        """
        limits = torch.finfo(self.nu_log.dtype)
        nu_log = self.nu_log.clamp(math.log(limits.eps), math.log(-math.log(limits.tiny)))
        size = torch.exp(-nu_log.exp())
        return size if self.theta_log is None else torch.polar(size, self.theta_log.exp())

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: LRUState | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], LRUState]:
        """Mix T tokens; see `Branch` for the contract."""
        [u] = self.inward(self, x)
        u = self._units(u.to(torch.promote_types(u.dtype, torch.float32)))  # B T N
        h, last = linear_recurrence(
            self.factors(),
            self.gamma_log.exp() * u,
            None if state is None else self._units(state.h.flatten(1)),
            layout=layout,
            form=chosen_form(form, x.shape[1]),
        )
        y = self._project_out(self._numbers(h).flatten(2).to(x.dtype), x)
        return y, LRUState(self._numbers(last))

    def _project_out(self, h: Tensor, x: Tensor) -> Tensor:
        [y] = self.outward(self, h)
        if self.skip_weight is not None:
            y = y + self.skip_weight * x
        if self.value_proj is None:
            return y
        value, gate = self.gated(self, F.gelu(y, approximate="tanh"))
        return value * torch.sigmoid(gate)

    def _units(self, numbers: Tensor) -> Tensor:
        """Complex units of pairs of numbers; real units are what they are."""
        if self.parts == 1:
            return numbers
        return torch.view_as_complex(numbers.unflatten(-1, (self.N, 2)).contiguous())

    def _numbers(self, units: Tensor) -> Tensor:
        return units if self.parts == 1 else torch.view_as_real(units)
