"""Rotary position: the same turn for q and k, exact at any position."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retnet.ops.rotation import PairLayout, Theta, frequencies, rotate, rotation_tables

PAIRS = ("interleaved", "half")
THETAS = ("linspace", "rope")
pairs_of = pytest.mark.parametrize("pairs", PAIRS)
theta_of = pytest.mark.parametrize("theta", THETAS)


def turned(x: Tensor, positions: Tensor, theta: Theta, pairs: PairLayout) -> Tensor:
    cos, sin = rotation_tables(positions, theta, x.shape[-1], x.dtype)
    return rotate(x, cos, sin, pairs)


@pairs_of
@theta_of
@given(offset=st.integers(0, 10**7), width=st.sampled_from([2, 4, 16]))
@settings(max_examples=15)
def test_scores_depend_on_distance_only(
    theta: Theta, pairs: PairLayout, offset: int, width: int
) -> None:
    """The conjugate: q and k turn the same way and the dot product undoes one of them."""
    q, k = torch.randn(2, 1, 6, 2, width, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 5, 90, 1000]])
    near, far = (
        torch.einsum(
            "bthd,bshd->bhts",
            turned(q, positions + shift, theta, pairs),
            turned(k, positions + shift, theta, pairs),
        )
        for shift in (0, offset)
    )
    torch.testing.assert_close(far, near, rtol=0, atol=1e-8)


@theta_of
@pytest.mark.parametrize("n", [0, 1, 1023, 1_000_003, 123_456_789])
def test_tables_are_exact_at_any_position_whatever_their_dtype(theta: Theta, n: int) -> None:
    """T25: float32 angles lose 0.06 rad at a million. Judged by whole-number arithmetic.

    n a = (n // m) (m a) + (n % m) a, with m a reduced by whole turns first.
    """
    width = 32
    cos, sin = rotation_tables(torch.tensor([[n]]), theta, width, torch.float32)
    assert cos.shape == sin.shape == (1, 1, 1, width // 2)
    assert cos.dtype == torch.float32
    for i in range(width // 2):
        exponent = 2 * i / width if theta == "rope" else i / (width // 2 - 1)
        angle = 10000.0**-exponent
        step = math.fmod(1000 * angle, 2 * math.pi)
        reduced = math.fmod(n // 1000 * step, 2 * math.pi) + n % 1000 * angle
        assert cos[0, 0, 0, i].item() == pytest.approx(math.cos(reduced), abs=2e-6)
        assert sin[0, 0, 0, i].item() == pytest.approx(math.sin(reduced), abs=2e-6)


@theta_of
def test_both_pair_layouts_are_one_up_to_the_order_of_channels(theta: Theta) -> None:
    x = torch.randn(2, 7, 3, 8, dtype=torch.float64)
    positions = torch.arange(7)[None]
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # channels (2i, 2i+1) to (i, i + 4)
    half = turned(x[..., order], positions, theta, "half")
    interleaved = turned(x, positions, theta, "interleaved")
    torch.testing.assert_close(half, interleaved[..., order])


@pairs_of
def test_rotation_is_a_product_of_complex_numbers(pairs: PairLayout) -> None:
    x = torch.randn(2, 7, 3, 8, dtype=torch.float64)
    positions = torch.stack([torch.arange(7), torch.arange(40, 47)])  # rows differ
    got = turned(x, positions, "rope", pairs)
    split = (x[..., 0::2], x[..., 1::2]) if pairs == "interleaved" else x.chunk(2, -1)
    angles = positions.double()[..., None, None] * frequencies("rope", 8)
    want = torch.complex(*split) * torch.polar(torch.ones_like(angles), angles)
    parts = (got[..., 0::2], got[..., 1::2]) if pairs == "interleaved" else got.chunk(2, -1)
    torch.testing.assert_close(torch.complex(*parts), want)


@pairs_of
def test_rotation_keeps_lengths_and_leaves_its_input_alone(pairs: PairLayout) -> None:
    x = torch.randn(1, 5, 2, 6, dtype=torch.float64)
    kept = x.clone()
    got = turned(x, torch.arange(5)[None], "rope", pairs)
    torch.testing.assert_close(got.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(x, kept)


@pairs_of
def test_gradient_agrees_with_finite_differences(pairs: PairLayout) -> None:
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    cos, sin = rotation_tables(torch.arange(3)[None], "rope", 4, torch.float64)
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, 0.5 * sin, pairs), [x])


@theta_of
@pytest.mark.parametrize("width", [2, 4, 256])
def test_frequencies_fall_from_one(theta: Theta, width: int) -> None:
    table = frequencies(theta, width)
    assert table.dtype == torch.float64
    assert table[0] == 1
    assert (table.diff() < 0).all()
    if theta == "linspace" and width > 2:
        assert table[-1].item() == pytest.approx(1e-4)


def test_the_two_tables_are_not_interchangeable() -> None:
    ratio = frequencies("linspace", 256) / frequencies("rope", 256)
    assert 0.92 < ratio.min() < 0.95


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rotation_keeps_the_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(1, 3, 1, 4).to(dtype)
    assert turned(x, torch.arange(3)[None], "rope", "half").dtype == dtype
