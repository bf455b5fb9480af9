"""Channel mixers: they work on each token alone and remember nothing."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.branch import ALONE, Depth, Place
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout
from retnet.ops.gate import Activation, activate, gated
from retnet.ops.packed_linear import Weights
from retnet.ops.program import NO_NORM, Norm, Program, Read, Vector
from retnet.types import FormChoice


@dataclass(frozen=True, kw_only=True)
class GLUConfig:
    """Gated linear unit, `W_down (act(x W_gate) * x W_up)` (Shazeer 2020, arXiv:2002.05202).

    Attributes:
        width: of the inner layer.
        activation: of the gate.
        bias: whether the three linear layers have biases.
    """

    formula: ClassVar[str] = "y = (act(x W_gate) ⊙ x W_up) W_down"
    cost: ClassVar[str] = "O(D F) / O(D F)"

    width: int
    activation: Activation = "swish"
    bias: bool = False

    def build(self, d_model: int) -> "GLU":
        """Make the layer for a decoder of width `d_model`."""
        return GLU(self, d_model)


class GLU(nn.Module):
    """Gated linear unit."""

    def __init__(self, config: GLUConfig, d_model: int) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        self.gate_proj = nn.Linear(d_model, config.width, bias=config.bias)
        self.up_proj = nn.Linear(d_model, config.width, bias=config.bias)
        self.down_proj = nn.Linear(config.width, d_model, bias=config.bias)
        self.inward = JointLinear("gate_proj", "up_proj")
        self.outward = JointLinear("down_proj")
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """Draw PyTorch's default for linear layers, all but the gate times `gain`."""
        _reset(self.gate_proj, 1.0)
        _reset(self.up_proj, gain)
        _reset(self.down_proj, gain)

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """None; see `Branch`."""
        return 0

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.inward.pack(self, weights)
        self.outward.pack(self, weights)

    def write_step(self, program: Program, x: Read, stream: Vector, at: Place) -> None:  # noqa: ARG002
        """Two products; see `Compiles`."""
        weight, bias = self.inward.joined(self)
        width, inner = self.gate_proj.out_features, program.vector(len(weight))
        program.linear(x, weight, bias, inner, activation=self.activation, active=(0, width))
        product = Read(inner.cut(width, width), gate=inner.cut(0, width))
        program.linear(product, *self.outward.joined(self), stream, add=True)

    def flops_per_token(self, seq_len: int) -> int:  # noqa: ARG002
        """None but its linear layers'; see `Branch`."""
        return 0

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: None,
        layout: Layout,  # noqa: ARG002
        form: FormChoice = "auto",  # noqa: ARG002
    ) -> tuple[Float[Tensor, "B T D"], None]:
        """Mix the channels of each token; see `Branch` for the contract."""
        gate, up = self.inward(self, x)
        return self.outward(self, gated(gate, up, self.activation))[0], state


@dataclass(frozen=True, kw_only=True)
class FFNConfig:
    """Feed-forward network, `W_down norm(act(x W_up))` (Vaswani et al. 2017, arXiv:1706.03762).

    Attributes:
        width: of the inner layer.
        activation: between the two linear layers.
        inner_norm: LayerNorm before the second linear layer ("subln", arXiv:2210.06423).
        norm_eps: its epsilon.
        bias: whether the two linear layers have biases.
    """

    formula: ClassVar[str] = "y = norm(act(x W_up + b)) W_down + b"
    cost: ClassVar[str] = "O(D F) / O(D F)"

    width: int
    activation: Activation = "gelu"
    inner_norm: bool = False
    norm_eps: float = 1e-5
    bias: bool = True

    def build(self, d_model: int) -> "FFN":
        """Make the layer for a decoder of width `d_model`."""
        return FFN(self, d_model)


class FFN(nn.Module):
    """Two linear layers and what is between them."""

    def __init__(self, config: FFNConfig, d_model: int) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        self.up_proj = nn.Linear(d_model, config.width, bias=config.bias)
        self.inner_norm = (
            nn.LayerNorm(config.width, config.norm_eps) if config.inner_norm else nn.Identity()
        )
        self.down_proj = nn.Linear(config.width, d_model, bias=config.bias)
        self.inward = JointLinear("up_proj")
        self.outward = JointLinear("down_proj")
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """Draw PyTorch's default for linear layers times `gain`."""
        _reset(self.up_proj, gain)
        _reset(self.down_proj, gain)
        if isinstance(self.inner_norm, nn.LayerNorm):
            self.inner_norm.reset_parameters()

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """None; see `Branch`."""
        return 0

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.inward.pack(self, weights)
        self.outward.pack(self, weights)

    def write_step(self, program: Program, x: Read, stream: Vector, at: Place) -> None:  # noqa: ARG002
        """Two products; see `Compiles`."""
        weight, bias = self.inward.joined(self)
        inner, norm = program.vector(len(weight)), NO_NORM
        if isinstance(self.inner_norm, nn.LayerNorm):
            norm = Norm("layer", self.inner_norm.eps, self.inner_norm.weight, self.inner_norm.bias)
        program.linear(x, weight, bias, inner, activation=self.activation)
        program.linear(Read(inner, norm), *self.outward.joined(self), stream, add=True)

    def flops_per_token(self, seq_len: int) -> int:  # noqa: ARG002
        """None but its linear layers'; see `Branch`."""
        return 0

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: None,
        layout: Layout,  # noqa: ARG002
        form: FormChoice = "auto",  # noqa: ARG002
    ) -> tuple[Float[Tensor, "B T D"], None]:
        """Mix the channels of each token; see `Branch` for the contract."""
        [up] = self.inward(self, x)
        return self.outward(self, self.inner_norm(activate(up, self.activation)))[0], state


def _reset(linear: nn.Linear, gain: float) -> None:
    linear.reset_parameters()
    if gain != 1.0:
        linear.weight.data.mul_(gain)
