"""Branches behind a token shift: what reaches them, and how they begin."""

import pytest
import torch

from retnet.mixers.channel import GLU
from retnet.mixers.retention import Retention, RetentionConfig
from retnet.mixers.shifted import (
    ShiftedGLU,
    ShiftedGLUConfig,
    ShiftedRetention,
    ShiftedRetentionConfig,
)
from retnet.ops import Layout

B, T, D = 2, 7, 8

Shifted = ShiftedRetention | ShiftedGLU


def layers() -> list[Shifted]:
    torch.manual_seed(0)
    configs = (
        ShiftedRetentionConfig(retention=RetentionConfig(num_heads=2)),
        ShiftedGLUConfig(width=5),
    )
    return [config.build(D).double() for config in configs]


def inner(module: Shifted) -> Retention | GLU:
    return module.retention if isinstance(module, ShiftedRetention) else module.glu


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("module", layers())
def test_the_branch_reads_mixtures_of_neighbours(module: Shifted, mix: float) -> None:
    layout = Layout.of(B, T)
    x = torch.randn(B, T, D, dtype=torch.float64)
    before = torch.cat([torch.zeros(B, 1, D, dtype=torch.float64), x[:, :-1]], 1)
    with torch.no_grad():
        module.mix.fill_(mix)
    y, state = module(x, None, layout)
    want, kept = inner(module)(mix * x + (1 - mix) * before, None, layout)
    torch.testing.assert_close(y, want)
    if kept is not None:
        torch.testing.assert_close(state.S, kept.S)
    assert torch.equal(state.shift, x[:, -1])


@pytest.mark.parametrize("module", layers())
def test_some_channels_begin_looking_back_and_some_do_not(module: Shifted) -> None:
    assert module.mix.tolist() == [i / D for i in range(D)]
    with torch.no_grad():
        module.mix.fill_(3.0)
    module.reset_parameters(1.0)
    assert module.mix.tolist() == [i / D for i in range(D)]


@pytest.mark.parametrize("module", layers())
def test_the_shift_costs_one_number_for_each_channel(module: Shifted) -> None:
    branch = inner(module)
    within = sum(p.numel() for p in branch.parameters())
    assert sum(p.numel() for p in module.parameters()) == within + D
    assert module.state_size(100) == branch.state_size(100) + D
