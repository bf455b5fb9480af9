"""RWKV's layers at birth, and what they keep in float32."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from retnet.mixers.branch import Depth
from retnet.mixers.rwkv import RWKV, RWKVConfig
from retnet.mixers.rwkv_channel import RWKVFFN, RWKVFFNConfig
from retnet.ops import Layout

D, F, L = 6, 24, 3


def time_mixing(layer: int, width: int | None = None) -> RWKV:
    module = RWKVConfig(width=width).build(D)
    module.reset_parameters(1.0, Depth(layer, L))
    return module


def channel_mixing(layer: int) -> RWKVFFN:
    module = RWKVFFNConfig(width=F).build(D)
    module.reset_parameters(1.0, Depth(layer, L))
    return module


def close(got: Any, want: list[float]) -> None:
    torch.testing.assert_close(got.detach(), torch.tensor(want))


@pytest.mark.parametrize("layer", range(L))
def test_time_parameters_begin_as_in_the_official_code(layer: int) -> None:
    """Trap 10: the code, not the paper's appendix, and no time_first of 1."""
    module = time_mixing(layer)
    r01, r10 = layer / (L - 1), 1 - layer / L
    close(module.time_decay, [-5 + 8 * (i / (D - 1)) ** (0.7 + 1.3 * r01) for i in range(D)])
    close(module.time_first, [math.log(0.3) + 0.5 * z for z in (0, 1, -1, 0, 1, -1)])
    close(module.mix_k, [(i / D) ** r10 for i in range(D)])
    close(module.mix_v, [(i / D) ** r10 + 0.3 * r01 for i in range(D)])
    close(module.mix_r, [(i / D) ** (0.5 * r10) for i in range(D)])
    ffn = channel_mixing(layer)
    close(ffn.mix_k, [(i / D) ** r10 for i in range(D)])
    close(ffn.mix_r, [(i / D) ** r10 for i in range(D)])


def test_matrices_begin_orthogonal_or_zero() -> None:
    module, ffn = time_mixing(1), channel_mixing(1)
    for proj in (module.k_proj, module.r_proj, module.o_proj, ffn.r_proj, ffn.v_proj):
        assert (proj.weight == 0).all()
    v, k = module.v_proj.weight, ffn.k_proj.weight
    torch.testing.assert_close(v @ v.T, torch.eye(D))
    torch.testing.assert_close(k.T @ k, 4 * torch.eye(D))  # gain sqrt(F / D) = 2


def test_a_lone_layer_of_one_channel_divides_by_nothing() -> None:
    """Trap 10: L = 1 and A = 1."""
    module = RWKVConfig(width=1).build(D)
    close(module.time_decay, [-5.0])
    close(module.mix_v, [i / D for i in range(D)])


def test_a_new_layer_gives_zeros_and_wakes_in_two_steps() -> None:
    torch.manual_seed(0)
    x, layout = torch.randn(2, 5, D), Layout.of(2, 5)
    for module, first in ((time_mixing(1), "o_proj"), (channel_mixing(1), "v_proj")):
        y, _ = module(x, None, layout)
        assert (y == 0).all()
        y.backward(torch.ones_like(y))
        woken = {
            name
            for name, p in module.named_parameters()
            if p.grad is not None and p.grad.abs().max() > 0
        }
        assert woken == {f"{first}.weight"}


def test_decay_and_bonus_stay_float32_and_learn_faster() -> None:
    """Trap 4: a retention of 0.99988 is 1 in bfloat16."""
    module = time_mixing(0).bfloat16()
    assert module.time_decay.dtype == module.time_first.dtype == torch.float32
    assert module.k_proj.weight.dtype == torch.bfloat16
    assert module.learning_rates == {"time_decay": 2.0, "time_first": 3.0}
    y, state = module(torch.randn(2, 5, D).bfloat16(), None, Layout.of(2, 5))
    assert y.dtype == torch.bfloat16
    assert all(leaf.dtype == torch.float32 for leaf in state)


@pytest.mark.parametrize("config", [RWKVConfig(), RWKVFFNConfig(width=F)])
def test_one_state_serves_two_continuations_and_every_call_begins_afresh(config: Any) -> None:
    """Traps 13 and 5.9 of other programs: nothing is kept outside of the state."""
    torch.manual_seed(0)
    module = config.build(D)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x, layout = torch.randn(2, 4, D), Layout.of(2, 4)
    first, state = module(x, None, layout)
    again, _ = module(x, state, layout)
    module(-x, state, layout)
    assert torch.equal(module(x, state, layout)[0], again)
    assert torch.equal(module(x, None, layout)[0], first)


@pytest.mark.parametrize("cls", [RWKVConfig, RWKVFFNConfig])
def test_widths_below_one_are_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match=r"width \(0\) must be at least 1"):
        cls(width=0)
