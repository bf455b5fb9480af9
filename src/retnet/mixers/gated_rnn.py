"""LSTM and GRU: recurrent networks whose gates read their own last output, on PyTorch's kernels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from retnet.mixers.branch import ALONE, Depth
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout
from retnet.ops.documents import by_document
from retnet.ops.packed_linear import Weights
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
    """

    cell: type[nn.LSTM] | type[nn.GRU]
    compute: Callable[..., tuple[Tensor, ...]]
    state: type[LSTMState] | type[GRUState]
    forget: int | None


_LSTM = _Kind(nn.LSTM, torch.lstm, LSTMState, forget=1)
_GRU = _Kind(nn.GRU, torch.gru, GRUState, forget=None)


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
        with torch.autocast(x.device.type, enabled=False):
            h, state = by_document(self._read, exact, state, layout)
        return self.outward(self, h.to(x.dtype))[0], state

    def _read(
        self, x: Tensor, state: tuple[Tensor, ...] | None, length: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs of rows, and their states after `length` tokens of each; see `by_document`."""
        weights = [weight.to(x.dtype) for weight in self.cell.all_weights[0]]
        before = state or [x.new_zeros(len(x), self.width)] * len(self.kind.state._fields)
        # has_biases, num_layers, dropout, train, bidirectional
        one_layer = weights, True, 1, 0.0, self.training, False
        if length is None:
            h, *after = self.kind.compute(x, _of_one_layer(before), *one_layer, True)  # batch_first
            return h, self.kind.state(*(leaf[0] for leaf in after))
        packed = pack_padded_sequence(x, length.clamp(min=1).cpu(), True, enforce_sorted=False)
        data, batch_sizes, sorted_, unsorted = packed
        held = _of_one_layer([leaf[sorted_] for leaf in before])
        h, *after = self.kind.compute(data, batch_sizes, held, *one_layer)
        packed = PackedSequence(h, batch_sizes, sorted_, unsorted)
        y, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
        read = length[:, None] > 0
        leaves = (
            torch.where(read, new[0, unsorted], old) for new, old in zip(after, before, strict=True)
        )
        return y, self.kind.state(*leaves)


def _of_one_layer(leaves: Sequence[Tensor]) -> Tensor | list[Tensor]:
    """A state as PyTorch has it: the layers in front, and a lone tensor in no list."""
    held = [leaf[None].contiguous() for leaf in leaves]
    return held if len(held) > 1 else held[0]


def _check_width(width: int | None) -> None:
    if width is not None and width < 1:
        raise ValueError(f"width ({width}) must be at least 1")
