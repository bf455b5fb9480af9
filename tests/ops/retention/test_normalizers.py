"""The numbers that outputs are divided by before the head norm."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.reference import random_case
from retnet.mixers.retention import log_decays
from retnet.ops import Layout
from retnet.ops.retention.normalizers import squared_decay_norm, torchscale_row_sum


@given(
    log_decay=st.sampled_from([0.0, -20.0, -1e-12, -1e-300]) | st.floats(-20, 0),
    n=st.integers(0, 300),
)
@settings(max_examples=80)
def test_closed_form_is_the_sum_of_the_powers_of_the_decay(log_decay: float, n: int) -> None:
    """T14: also where nothing decays, where the closed form is 0 / 0."""
    logs = torch.tensor([log_decay], dtype=torch.float64)
    got = squared_decay_norm(torch.tensor([[n]]), logs)
    want = (logs * torch.arange(n + 1)).exp().sum()
    torch.testing.assert_close(got[0, 0, 0], want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("decay", ["pow2", "linspace", "constant:1", "constant:0.9921875"])
def test_closed_form_of_every_head_at_every_position(decay: str) -> None:
    log_decay = log_decays(decay, 32)
    positions = torch.arange(500)[None]
    want = (log_decay * torch.arange(500)[:, None]).exp().cumsum(0)[None]
    got = squared_decay_norm(positions, log_decay)
    assert got.shape == (1, 500, 32)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=0)


def test_closed_form_is_the_sum_at_positions_beyond_a_million() -> None:
    """T25."""
    log_decay = log_decays("pow2", 32)[[0, 15, 31]]
    n = 1_500_000
    powers = (log_decay[:, None] * torch.arange(n + 1)).exp_()
    got = squared_decay_norm(torch.tensor([[n]]), log_decay)[0, 0]
    torch.testing.assert_close(got, powers.sum(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("absolute", [True, False])
def test_row_sum_is_that_of_the_definition(absolute: bool) -> None:
    """Scores times decay over c_n, padding and other documents left out, at least 1."""
    B, T, H = 2, 9, 3
    case = random_case((B, T, H, 4, 4))
    q, k = 4 * case.q, 4 * case.k
    valid = torch.rand(B, T) < 0.8
    starts = torch.rand(B, T) < 0.2
    layout = Layout.of(B, T, valid=valid, starts=starts)
    squared = squared_decay_norm(layout.positions, case.log_decay)
    got = torchscale_row_sum(q, k, case.log_decay, squared, layout, absolute)
    document = (starts & valid).long().cumsum(1)
    for b in range(B):
        for n in range(T):
            total = torch.zeros(H, dtype=torch.float64)
            for m in range(n + 1):
                if valid[b, n] and valid[b, m] and document[b, n] == document[b, m]:
                    apart = int(valid[b, m + 1 : n + 1].sum())
                    score = (q[b, n] * k[b, m]).sum(-1) * (case.log_decay * apart).exp()
                    score = score / squared[b, n].sqrt()
                    total += score.abs() if absolute else score
            torch.testing.assert_close(got[b, n], total.abs().clamp(min=1))


def test_row_sum_stays_below_what_float16_can_hold() -> None:
    case = random_case((1, 9, 2, 4, 4), dtype=torch.float16)
    layout = Layout.of(1, 9)
    squared = squared_decay_norm(layout.positions, case.log_decay)
    got = torchscale_row_sum(100 * case.q, 3e4 * case.k, case.log_decay, squared, layout, True)
    assert got.dtype == torch.float32
    assert got.max() == 5e4
