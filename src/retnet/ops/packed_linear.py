"""Linear layers laid out for products of a few tokens, where reading the weights is the cost."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Weights = Literal["float32", "bfloat16", "int8"]
"""How weights are kept for steps; int8 has one scale per output, activations stay bfloat16."""

INT8_ROWS = 4
"""Up to so many rows PyTorch's int8 product is faster than oneDNN's bfloat16 one on a CPU."""

INT8_MULTIPLE = 32
"""PyTorch's int8 product reads past the end of narrower or odd matrices, and may crash."""


class PackedLinear:
    """`x W^T + b` of one weight matrix, for inference; it holds copies and follows no change.

    A CPU multiplies a matrix in the order of a training checkpoint by a few rows at a third to a
    half of the speed at which it could read it: oneDNN first brings the matrix into the order of
    its own kernels, at every call. Here that is done once.

    Attributes:
        shape: (outputs, inputs).
    """

    def __init__(
        self, weight: Float[Tensor, "N K"], bias: Float[Tensor, " N"] | None, kind: Weights
    ) -> None:
        """Pack a matrix and its bias.

        Args:
            weight: in any dtype.
            bias: None for none.
            kind: `float32` keeps one contiguous matrix; `bfloat16` oneDNN's order of it where
                oneDNN has bfloat16; `int8` this and a copy of 8 bits, if K is a multiple of 32.

        Raises:
            ValueError: the weight is not on a CPU.
        """
        if weight.device.type != "cpu":
            raise ValueError(
                f"the weight is on {weight.device}; packed products are for CPUs: leave the model "
                "as it is there"
            )
        self.shape = tuple(weight.shape)
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._dense = weight.detach().to(dtype).contiguous()
        self._onednn = None
        if dtype == torch.bfloat16 and _onednn_has_bfloat16():
            self._dense = torch.ops.mkldnn._reorder_linear_weight(self._dense, 1)
            self._onednn = torch.ops.mkldnn._linear_pointwise.default
        self._int8 = self._scale = None
        if kind == "int8" and weight.shape[1] % INT8_MULTIPLE == 0:
            self._int8, self._scale = quantize(
                F.pad(weight, (0, 0, 0, -len(weight) % INT8_MULTIPLE))
            )
        self._int8_numel = INT8_ROWS * weight.shape[1]

    def __call__(self, x: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows N"]:
        """Multiply rows in the packed dtype."""
        if self._int8 is not None and self._scale is not None and x.numel() <= self._int8_numel:
            flat = (x if x.dim() == 2 else x.reshape(-1, self.shape[1])).contiguous()
            y = torch.ops.aten._weight_int8pack_mm.default(flat, self._int8, self._scale)[
                :, : self.shape[0]
            ]
            y = y if self._bias is None else y + self._bias
            return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.shape[0])
        if self._onednn is not None:
            return self._onednn(x, self._dense, self._bias, "none", [], "")
        return F.linear(x, self._dense, self._bias)

    def __deepcopy__(self, memo: dict[int, object]) -> "PackedLinear":
        return self  # never changed, and oneDNN's tensors cannot be copied


def quantize(
    weight: Float[Tensor, "N K"],
) -> tuple[Tensor, Tensor]:
    """Eight bits per weight, symmetric, one bfloat16 scale per output.

    Returns:
        Integers in [-127, 127], (N, K), and scales (N,): their product is the weight to within
        half a scale.
    """
    exact = weight.detach().float()
    scale = (exact.abs().amax(-1) / 127).clamp(min=1e-12).bfloat16()
    whole = (exact / scale[:, None].float()).round().clamp(-127, 127)
    return whole.to(torch.int8), scale


def _onednn_has_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
