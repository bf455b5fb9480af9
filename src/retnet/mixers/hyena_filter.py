"""Hyena's filters: functions of the distance between tokens, as small networks say."""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.mixers.precise import PreciseParameters

INNER_LAYERS = 2
"""Of the network, as published."""

SLOWEST, FASTEST, LEFT = 1.5, 0.3, 1e-2
"""A filter has decayed to LEFT after SLOWEST to FASTEST times its length, by channel."""


class HyenaFilter(PreciseParameters, nn.Module):
    """`h_t = MLP(position_t) exp(-rate t / (taps - 1))` for t < taps.

    All of it stays float32: in half precision most positions would be the same number. Its linear
    layers are plain parameters, since they work on distances, not on tokens.
    """

    precise = (
        "positions",
        "in_weight",
        "in_bias",
        "inner_weight",
        "inner_bias",
        "out_weight",
        "frequency",
    )
    learning_rates: ClassVar[dict[str, float]] = {"positions": 0.01}

    def __init__(self, width: int, taps: int, order: int, emb_dim: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(taps, emb_dim))
        self.in_weight = nn.Parameter(torch.empty(order, emb_dim))
        self.in_bias = nn.Parameter(torch.empty(order))
        self.inner_weight = nn.Parameter(torch.empty(INNER_LAYERS, order, order))
        self.inner_bias = nn.Parameter(torch.empty(INNER_LAYERS, order))
        self.out_weight = nn.Parameter(torch.empty(width, order))
        self.frequency = nn.Parameter(torch.empty(order))  # of all sines

    def reset(self, frequency: float) -> None:
        """PyTorch's default for linear layers; positions are t and turns of several speeds."""
        layers = (self.in_weight, self.in_bias), (self.inner_weight, self.inner_bias)
        for weight, *bias in (*layers, (self.out_weight,)):
            bound = weight.shape[-1] ** -0.5
            for parameter in (weight, *bias):
                nn.init.uniform_(parameter, -bound, bound)
        nn.init.constant_(self.frequency, frequency)
        taps, emb_dim = self.positions.shape
        bands = (emb_dim - 1) // 2
        exact: Any = {"dtype": torch.float64, "device": self.positions.device}
        speeds = torch.linspace(1e-4, bands - 1, bands, **exact)
        t = torch.arange(taps, **exact)[:, None]
        angles = 2 * math.pi / taps * t * speeds
        with torch.no_grad():
            self.positions.copy_(torch.cat([t / (taps - 1), angles.cos(), -angles.sin()], 1))

    def window(self, taps: int) -> Float[Tensor, "taps width"]:
        """The decay of each channel."""
        width, known = len(self.out_weight), len(self.positions)
        like = self.frequency
        slow, fast = (-math.log(LEFT) / span for span in (SLOWEST, FASTEST))
        rates = torch.linspace(slow, fast, width, dtype=like.dtype, device=like.device)
        t = torch.arange(taps, dtype=like.dtype, device=like.device) / (known - 1)
        return torch.exp(-t[:, None] * rates)

    def forward(self, taps: int) -> Float[Tensor, "taps width"]:
        """The first taps of each channel's filter."""
        h = torch.sin(
            self.frequency * F.linear(self.positions[:taps], self.in_weight, self.in_bias)
        )
        for weight, bias in zip(self.inner_weight, self.inner_bias, strict=True):
            h = torch.sin(self.frequency * F.linear(h, weight, bias))
        return F.linear(h, self.out_weight) * self.window(taps)
