"""Channel mixers, written out."""

import math
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.mixers.channel import FFNConfig, GLUConfig
from retnet.ops import Layout
from retnet.ops.gate import ACTIVATIONS, Activation

LAYOUT = Layout.of(2, 3)
BY_HAND = {
    "swish": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "relu": lambda x: x.clamp(min=0),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
}


def inputs() -> Tensor:
    torch.manual_seed(4)
    return torch.randn(2, 3, 8, dtype=torch.float64)


def affine(linear: nn.Linear, x: Tensor) -> Tensor:
    y = x @ linear.weight.T
    return y if linear.bias is None else y + linear.bias


def has_biases(module: nn.Module) -> set[bool]:
    return {p.bias is not None for p in module.children() if isinstance(p, nn.Linear)}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_glu_is_its_formula(activation: str, bias: bool) -> None:
    config = GLUConfig(width=20, activation=cast(Activation, activation), bias=bias)
    module, x = config.build(8).double(), inputs()
    y, state = module(x, None, LAYOUT)
    gate, up = affine(module.gate_proj, x), affine(module.up_proj, x)
    torch.testing.assert_close(y, affine(module.down_proj, BY_HAND[activation](gate) * up))
    assert state is None
    assert has_biases(module) == {bias}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("inner_norm", "bias"), [(False, True), (True, True), (False, False)])
def test_ffn_is_its_formula(activation: str, inner_norm: bool, bias: bool) -> None:
    config = FFNConfig(
        width=20,
        activation=cast(Activation, activation),
        inner_norm=inner_norm,
        norm_eps=1e-2,
        bias=bias,
    )
    module, x = config.build(8).double(), inputs()
    y, _ = module(x, None, LAYOUT)
    inner = BY_HAND[activation](affine(module.up_proj, x))
    if inner_norm:
        inner = F.layer_norm(inner, (20,), eps=1e-2)
    torch.testing.assert_close(y, affine(module.down_proj, inner))
    assert has_biases(module) == {bias}


def test_inner_norm_has_the_width_of_the_inner_layer() -> None:
    """T12: one of the model's width fails as soon as the two differ."""
    module = FFNConfig(width=20, inner_norm=True).build(8)
    assert isinstance(module.inner_norm, nn.LayerNorm)
    assert module.inner_norm.normalized_shape == (20,)


def test_gain_spares_the_gate_of_a_glu() -> None:
    sizes = {}
    for gain in (1.0, 0.25):
        module = GLUConfig(width=20).build(8)
        torch.manual_seed(0)
        module.reset_parameters(gain)
        for name in ("gate", "up", "down"):
            sizes[name, gain] = getattr(module, f"{name}_proj").weight.std().item()
    ratios = {name: sizes[name, 0.25] / sizes[name, 1.0] for name in ("gate", "up", "down")}
    assert ratios == pytest.approx({"gate": 1.0, "up": 0.25, "down": 0.25})
