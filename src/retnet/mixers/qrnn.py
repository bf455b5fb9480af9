"""Quasi-recurrent network: gates from a short convolution, and a recurrence without weights."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.branch import ALONE, Depth, chosen_form
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout, linear_recurrence
from retnet.ops.packed_linear import Weights
from retnet.ops.previous import previous_tokens
from retnet.types import FormChoice

Pooling = Literal["f", "fo", "ifo"]


class QRNNState(NamedTuple):
    """What the cells hold after the last token, and what the convolution will read again."""

    c: Float[Tensor, "B W"]
    inputs: Float[Tensor, "B past D"]


@dataclass(frozen=True, kw_only=True)
class QRNNConfig:
    """Quasi-recurrent network (Bradbury et al. 2016, arXiv:1611.01576).

    Attributes:
        width: W, number of cells; None means d_model.
        window: k, tokens that the convolution reads.
        pooling: `f` has a forget gate, `fo` an output gate as well, `ifo` also an input gate, where
            the others let in what they forget.
        zoneout: probability that a cell keeps its value at a token, in training.
        out_proj: end with a linear layer; without it W must be d_model.
    """

    formula: ClassVar[str] = (
        "z, f, o = tanh, σ, σ of W [x_t, ..., x_(t-k+1)],  c_t = f c_(t-1) + (1 - f) z,  h = o c"
    )
    cost: ClassVar[str] = "O(W) / O(W)"
    left_out: ClassVar[str] = "attention over an encoder, dense connections between layers"

    width: int | None = None
    window: int = 2
    pooling: Pooling = "fo"
    zoneout: float = 0.0
    out_proj: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "window"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1")
        if not 0 <= self.zoneout < 1:
            raise ValueError(f"zoneout ({self.zoneout}) must be a probability, 0 <= zoneout < 1")

    def build(self, d_model: int) -> "QRNN":
        """Make the layer for a decoder of width `d_model`."""
        return QRNN(self, d_model)


class QRNN(nn.Module):
    """Convolve, pool, project.

    `in_proj` reads a token and the ones before it, the most recent first, and gives the candidates
    and gates z, f, then o and i where there are any, W outputs each.
    """

    def __init__(self, config: QRNNConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.width = config.width or d_model
        if not config.out_proj and self.width != d_model:
            raise ValueError(
                f"width ({self.width}) must be d_model ({d_model}) where out_proj is false; change "
                "one of them in the mixer's config"
            )
        gates = 1 + len(config.pooling)
        self.in_proj = nn.Linear(config.window * d_model, gates * self.width)
        self.out_proj = nn.Linear(self.width, d_model, bias=False) if config.out_proj else None
        self.inward = JointLinear("in_proj")
        self.outward = JointLinear("out_proj")
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """PyTorch's default for linear layers, without biases; `gain` is the output layer's.

        Without one it is the candidates'.
        """
        self.in_proj.reset_parameters()
        nn.init.zeros_(self.in_proj.bias)
        if self.out_proj is not None:
            self.out_proj.reset_parameters()
        last = self.in_proj.weight[: self.width] if self.out_proj is None else self.out_proj.weight
        last.data.mul_(gain)

    def flops_per_token(self, seq_len: int) -> int:  # noqa: ARG002
        """None but its linear layers'; see `Branch`."""
        return 0

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """The cells and the last k - 1 inputs, whatever was read; see `Branch`."""
        return (
            self.width + self.in_proj.in_features * (self.config.window - 1) // self.config.window
        )

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.inward.pack(self, weights)
        if self.out_proj is not None:
            self.outward.pack(self, weights)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: QRNNState | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], QRNNState]:
        """Mix T tokens; see `Branch` for the contract."""
        c, inputs = state or (None, None)
        past, inputs = self._past(x, inputs, layout)
        [u] = self.inward(self, torch.cat((x, *past), -1))
        u = u.to(torch.promote_types(u.dtype, torch.float32))
        z, f, *others = u.split(self.width, -1)
        z, f = torch.tanh(z), torch.sigmoid(f)
        entering = 1 - f if self.config.pooling != "ifo" else torch.sigmoid(others[1])
        if self.training and self.config.zoneout:
            kept = torch.rand_like(f) < self.config.zoneout
            f, entering = f.masked_fill(kept, 1), entering.masked_fill(kept, 0)
        h, c = linear_recurrence(
            f, entering * z, c, layout=layout, form=chosen_form(form, x.shape[1])
        )
        if others:
            h = torch.sigmoid(others[0]) * h
        h = h.to(x.dtype)
        y = h if self.out_proj is None else self.outward(self, h)[0]
        return y, QRNNState(c, inputs)

    def _past(
        self, x: Tensor, inputs: Tensor | None, layout: Layout
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs of the k - 1 tokens before each, and of those before the next call."""
        if self.config.window == 1:
            return (), x[:, :0].to(torch.promote_types(x.dtype, torch.float32))
        return previous_tokens(x, self.config.window - 1, inputs, layout=layout)
