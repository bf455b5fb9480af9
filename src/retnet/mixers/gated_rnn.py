"""LSTM and GRU: recurrent networks whose gates read their own last output, on PyTorch's kernels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.branch import ALONE, Depth
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout
from retnet.ops.packed_linear import Weights
from retnet.ops.slots import Slots
from retnet.types import FormChoice


class LSTMState(NamedTuple):
    """Outputs and cells after the last token."""

    h: Float[Tensor, "B W"]
    c: Float[Tensor, "B W"]


class GRUState(NamedTuple):
    """Outputs after the last token."""

    h: Float[Tensor, "B W"]


@dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """Long short-term memory (Hochreiter and Schmidhuber 1997; forget gates: Gers et al. 2000).

    One token needs the output of the one before, so no form is parallel in T.

    Attributes:
        width: W, number of cells; None means d_model.
    """

    formula: ClassVar[str] = (
        "i, f, o, g = σ, σ, σ, tanh of W x_t + U h_(t-1),  "
        "c_t = f c_(t-1) + i g,  h_t = o tanh(c_t)"
    )
    cost: ClassVar[str] = "O(W²), one token after the other / O(W²)"
    left_out: ClassVar[str] = "peepholes, several layers in one mixer: stack decoder layers"

    width: int | None = None

    def __post_init__(self) -> None:
        _check_width(self.width)

    def build(self, d_model: int) -> "GatedRNN":
        """Make the layer for a decoder of width `d_model`."""
        return GatedRNN(self, d_model, _LSTM)


@dataclass(frozen=True, kw_only=True)
class GRUConfig:
    """Gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), the variant of cuDNN and PyTorch.

    One token needs the output of the one before, so no form is parallel in T.

    Attributes:
        width: W, number of units; None means d_model.
    """

    formula: ClassVar[str] = (
        "r, z = σ of W x_t + U h_(t-1),  n = tanh(W x_t + r U h_(t-1)),  "
        "h_t = (1 - z) n + z h_(t-1)"
    )
    cost: ClassVar[str] = "O(W²), one token after the other / O(W²)"
    left_out: ClassVar[str] = "the paper's n = tanh(W x_t + U (r h_(t-1))), which PyTorch lacks"

    width: int | None = None

    def __post_init__(self) -> None:
        _check_width(self.width)

    def build(self, d_model: int) -> "GatedRNN":
        """Make the layer for a decoder of width `d_model`."""
        return GatedRNN(self, d_model, _GRU)


class _Kind(NamedTuple):
    """What tells the two apart.

    Attributes:
        cell: PyTorch's module, for its parameters.
        compute: PyTorch's function.
        state: its state.
        forget: index of the forget gate among the gates; None without one.
        valves: of each gate, its sign where the state is held, and where it is cleared.
        content: index of the candidates if they must be zero to clear the state, else None.
    """

    cell: type[nn.LSTM] | type[nn.GRU]
    compute: Callable[..., tuple[Tensor, ...]]
    state: type[LSTMState] | type[GRUState]
    forget: int | None
    valves: tuple[tuple[int, int], ...]
    content: int | None


# i, f, g, o: c is held by f = 1 and i = 0; cleared by f = i = 0, and h with it by o = 0
_LSTM = _Kind(nn.LSTM, torch.lstm, LSTMState, 1, ((-1, -1), (1, -1), (0, 0), (0, -1)), None)
# r, z, n: h is held by z = 1; cleared by z = 0 where n = tanh(r ...) = 0
_GRU = _Kind(nn.GRU, torch.gru, GRUState, None, ((0, -1), (1, -1), (0, 0)), 2)

SHUT = 1000.0
"""Added to a gate's input: sigmoid(1000) is 1 and sigmoid(-1000) is 0 in float32 and float64."""


class GatedRNN(nn.Module):
    """Read token after token, project; every form is this one.

    It computes in float32 at least, whatever the dtype of its weights.
    """

    def __init__(self, config: LSTMConfig | GRUConfig, d_model: int, kind: _Kind) -> None:
        super().__init__()
        self.kind = kind
        self.width = config.width or d_model
        self.cell = kind.cell(d_model, self.width, batch_first=True)
        self.out_proj = nn.Linear(self.width, d_model, bias=False)
        self.outward = JointLinear("out_proj")
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """PyTorch's default, without biases but for a forget gate's, 1 (Jozefowicz et al. 2015)."""
        self.cell.reset_parameters()
        *_, bias_ih, bias_hh = self.cell.all_weights[0]  # only their sum matters to a forget gate
        nn.init.zeros_(bias_ih)
        nn.init.zeros_(bias_hh)
        if self.kind.forget is not None:
            nn.init.ones_(bias_ih.data.unflatten(0, (-1, self.width))[self.kind.forget])
        self.out_proj.reset_parameters()
        self.out_proj.weight.data.mul_(gain)

    def flops_per_token(self, seq_len: int) -> int:  # noqa: ARG002
        """Products of the gates, which are no linear layers; see `Branch`."""
        return 2 * sum(weight.numel() for weight in self.cell.all_weights[0][:2])

    def state_size(self, tokens: int) -> int:  # noqa: ARG002
        """One vector or two, whatever was read; see `Branch`."""
        return len(self.kind.state._fields) * self.width

    def pack(self, weights: Weights) -> None:
        """Lay out the output layer for steps; see `Packs`."""
        self.outward.pack(self, weights)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: Any,
        layout: Layout,
        form: FormChoice = "auto",  # noqa: ARG002  (one token needs the one before)
    ) -> tuple[Float[Tensor, "B T D"], Any]:
        """Mix T tokens; see `Branch` for the contract."""
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        slots = Slots.of(layout)
        with torch.autocast(x.device.type, enabled=False):
            weights = [weight.to(exact.dtype) for weight in self.cell.all_weights[0]]
            if slots is None:
                h, after = self._read(exact, state, weights)
            else:
                h, after = self._read_slots(exact, state, weights, slots)
        return self.outward(self, h.to(x.dtype))[0], after

    def _read(self, x: Tensor, state: Any, weights: list[Tensor]) -> tuple[Tensor, Any]:
        """Outputs and final state of whole rows."""
        leaves = state or self._fresh(x)
        held = [leaf[None].contiguous() for leaf in leaves]  # of one layer
        h, *after = self.kind.compute(
            x,
            held if len(held) > 1 else held[0],
            weights,
            True,  # has_biases
            1,  # num_layers
            0.0,  # dropout
            self.training,
            False,  # bidirectional
            True,  # batch_first
        )
        return h, self.kind.state(*(leaf[0] for leaf in after))

    def _read_slots(
        self, x: Tensor, state: Any, weights: list[Tensor], slots: Slots
    ) -> tuple[Tensor, Any]:
        """The same for rows with padding or starts: two more inputs shut and open the gates."""
        flags = torch.stack([slots.holds, slots.clears], -1).to(x.dtype)  # B L 2
        inward, *others = weights
        inward = torch.cat([inward, self._valves(others[1])], 1)
        read = torch.cat([slots.spread(x), flags], -1)
        h, (_, *rest) = self._read(read, state, [inward, *others])
        last = h[torch.arange(len(h), device=h.device), slots.last]
        before = self._fresh(x)[0] if state is None else state.h
        last = torch.where(slots.empty[:, None], before, last)
        return slots.gather(h), self.kind.state(last, *rest)

    def _valves(self, bias: Tensor) -> Tensor:
        """Weights from the two flags to the gates, (gates W, 2).

        They are so large that a gate is 0 or 1 to the last digit. Where the kind clears by letting
        new content in, that must be zero: its input bias is taken away.
        """
        gates = [
            torch.stack([bias.new_full((self.width,), SHUT * flag) for flag in pair], 1)
            for pair in self.kind.valves
        ]
        if self.kind.content is not None:
            own = bias.unflatten(0, (-1, self.width))[self.kind.content]
            gates[self.kind.content] = torch.stack([torch.zeros_like(own), -own], 1)
        return torch.cat(gates)

    def _fresh(self, x: Tensor) -> list[Tensor]:
        return [x.new_zeros(len(x), self.width)] * len(self.kind.state._fields)


def _check_width(width: int | None) -> None:
    if width is not None and width < 1:
        raise ValueError(f"width ({width}) must be at least 1")
