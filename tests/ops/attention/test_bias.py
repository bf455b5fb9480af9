"""Biases of distance: what the official code adds, and what they mean."""

import math

import pytest
import torch

from golden_files import golden
from ops.attention.reference import by_definition, random_case
from ops.attention.test_attention import close
from retnet.ops import attention
from retnet.ops.attention import AttentionState, Rule
from retnet.ops.attention.bias import (
    alibi_slopes,
    linear_bias,
    log_bias,
    power_bias,
    sandwich_bias,
)

DISTANCES = torch.arange(6, dtype=torch.float64)[None, None]  # 1 1 6


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12])
def test_slopes_are_those_of_the_official_code(heads: int) -> None:
    golden("alibi").assert_agrees(alibi_slopes(heads), f"slopes_{heads}")


def test_a_bias_on_keys_alone_differs_by_what_the_softmax_divides_by() -> None:
    """The official code adds m j to every row."""
    T, slopes = 9, alibi_slopes(12)
    on_keys = golden("alibi").arrays["out.bias_12"].double()  # H 1 T
    distance = (torch.arange(T)[:, None] - torch.arange(T)).clamp(min=0).double()[None]
    by_distance = linear_bias(distance, slopes)[0]
    lower = torch.ones(T, T, dtype=torch.bool).tril()
    shifted = (on_keys - by_distance).masked_fill(~lower, math.nan)
    spread = shifted.nan_to_num(-1e9).amax(-1) - shifted.nan_to_num(1e9).amin(-1)
    assert spread.abs().max() < 1e-4  # float32 in the file
    case = random_case(2, T, 12, 4)
    got, _ = attention(*case[:3], rule=Rule(bias=lambda d: linear_bias(d, slopes)))
    m = slopes[:, None, None] * torch.arange(T)
    close(got, attention(*case[:3], rule=Rule(bias=lambda _: m[None]))[0])
    want, _ = by_definition(case, bias=lambda d, h: -slopes[h] * d)
    close(got, want)


@pytest.mark.parametrize(("m", "beyond"), [(0.1, 7), (0.5, 3), (0.1, 50)])
def test_a_linear_bias_is_a_soft_window(m: float, beyond: int) -> None:
    """With equal contents the weight of all keys at a distance of D and more is e^(-m D)."""
    T = 300
    q = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    keys = torch.zeros(1, T, 1, 1, dtype=torch.float64)
    far = (torch.arange(T).flip(0) >= beyond).double()[None, :, None, None]
    state = AttentionState(keys[:, 1:].transpose(1, 2), far[:, :-1].transpose(1, 2))
    slope = torch.tensor([m], dtype=torch.float64)
    rule = Rule(bias=lambda d: linear_bias(d, slope))
    o, _ = attention(q, keys[:, :1], far[:, -1:], state, rule=rule)
    assert o.item() == pytest.approx(math.exp(-m * beyond), abs=1e-6)


def test_kerple_is_its_formulas() -> None:
    r1, r2 = torch.tensor([0.5, 2.0]).double(), torch.tensor([1.5, 0.3]).double()
    for h in range(2):
        want = [-r1[h].item() * d ** r2[h].item() for d in range(6)]
        close(power_bias(DISTANCES, r1, r2)[0, h, 0], torch.tensor(want, dtype=torch.float64))
        want = [-r1[h].item() * math.log(1 + r2[h].item() * d) for d in range(6)]
        close(log_bias(DISTANCES, r1, r2)[0, h, 0], torch.tensor(want, dtype=torch.float64))
    close(power_bias(DISTANCES, r1, torch.ones(2).double()), linear_bias(DISTANCES, r1))


def test_kerple_has_gradients_at_distance_zero() -> None:
    r1 = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    r2 = torch.tensor([1.5, 0.3], dtype=torch.float64, requires_grad=True)
    for bias in (power_bias, log_bias):
        assert torch.autograd.gradcheck(lambda a, b, f=bias: f(DISTANCES, a, b), [r1, r2])


def test_sandwich_is_a_product_of_sinusoids_less_that_of_a_position_with_itself() -> None:
    m = torch.arange(64, dtype=torch.float64)
    angles = torch.arange(6)[:, None] * 10000 ** (-2 * m / 128)
    p = torch.cat([angles.sin(), angles.cos()], 1)  # positions 0 to 5
    got = sandwich_bias(DISTANCES, 4)[0, :, 0]  # H 6
    for h in range(4):
        close(got[h], 4 / (8 * (h + 1)) * (p[5] @ p.T - 64).flip(0))
    assert (got <= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_bias_costs_no_accuracy_but_its_own_rounding(dtype: torch.dtype) -> None:
    case = random_case(2, 40, 4, 4, 16).to(dtype)
    rule = Rule(bias=lambda d: linear_bias(d, alibi_slopes(4)))
    o, _ = attention(*case[:3], rule=rule)
    exact, _ = attention(*case.to(torch.float64)[:3], rule=rule)
    assert o.dtype == dtype
    assert (o.double() - exact).abs().max() < 8 * torch.finfo(dtype).eps
