"""Retention behind a token shift: what reaches it, and how it begins."""

import pytest
import torch

from retnet.mixers.retention import RetentionConfig
from retnet.mixers.shifted_retention import ShiftedRetention, ShiftedRetentionConfig
from retnet.ops import Layout

B, T, D = 2, 7, 8


def layer() -> ShiftedRetention:
    torch.manual_seed(0)
    return ShiftedRetentionConfig(retention=RetentionConfig(num_heads=2)).build(D).double()


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
def test_retention_reads_mixtures_of_neighbours(mix: float) -> None:
    module, layout = layer(), Layout.of(B, T)
    x = torch.randn(B, T, D, dtype=torch.float64)
    before = torch.cat([torch.zeros(B, 1, D, dtype=torch.float64), x[:, :-1]], 1)
    with torch.no_grad():
        module.mix.fill_(mix)
    y, state = module(x, None, layout)
    want, kept = module.retention(mix * x + (1 - mix) * before, None, layout)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(state.S, kept.S)
    assert torch.equal(state.shift, x[:, -1])


def test_some_channels_begin_looking_back_and_some_do_not() -> None:
    module = layer()
    assert module.mix.tolist() == [i / D for i in range(D)]
    with torch.no_grad():
        module.mix.fill_(3.0)
    module.reset_parameters(1.0)
    assert module.mix.tolist() == [i / D for i in range(D)]


def test_the_shift_costs_one_number_for_each_channel() -> None:
    module = layer()
    inner = sum(p.numel() for p in module.retention.parameters())
    assert sum(p.numel() for p in module.parameters()) == inner + D
    assert module.state_size(100) == module.retention.state_size(100) + D
