"""Rotation by any skew matrix: the same relation, and what it can and cannot do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from retnet.ops.general_rotation import block_generator, turned_by, turns
from retnet.ops.rotation import PairLayout, frequencies, rotate, rotation_tables

H, D = 2, 6


def skew(seed: int = 0) -> Tensor:
    a = torch.randn(H, D, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a - a.mT


def vectors(T: int, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(1, T, H, D, generator=rng, dtype=torch.float64)


@given(m=st.integers(0, 4000), n=st.integers(0, 4000))
@settings(max_examples=15, deadline=None)
def test_a_turn_undoes_another_up_to_their_distance(m: int, n: int) -> None:
    B = skew()
    powers = turns(B, 12)
    x = torch.eye(D, dtype=torch.float64)[None, :, None].expand(1, D, H, D)

    def matrix(position: int) -> Tensor:
        places = torch.full((1, D), position)
        return turned_by(x, places, powers)[0].permute(1, 2, 0)  # H D D, columns are images

    got = matrix(m).mT @ matrix(n)
    torch.testing.assert_close(got, torch.matrix_exp((n - m) * B), rtol=0, atol=1e-9)


def test_near_positions_are_exact_to_rounding() -> None:
    B = skew()
    x = vectors(7)
    got = turned_by(x, torch.arange(7)[None], turns(B, 3))
    for n in range(7):
        want = torch.einsum("hde,he->hd", torch.matrix_exp(n * B), x[0, n])
        torch.testing.assert_close(got[0, n], want, rtol=0, atol=1e-13)


def test_eigenvalues_of_a_generator_are_imaginary_and_lengths_stay() -> None:
    assert torch.linalg.eigvals(skew()).real.abs().max() < 1e-13
    x = vectors(50)
    turned = turned_by(x, torch.arange(50)[None], turns(skew(), 6))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
def test_it_begins_as_rope(pairs: PairLayout) -> None:
    half = block_generator(frequencies("rope", D), pairs).expand(H, D, D)
    x, positions = vectors(9), torch.arange(9)[None] + 100
    cos, sin = rotation_tables(positions, "rope", D, torch.float64)
    want = rotate(x, cos, sin, pairs)
    got = turned_by(x, positions, turns(half - half.mT, 7))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def in_basis(B: Tensor) -> tuple[Tensor, Tensor]:
    """P and the angles of B = P L P^T, L of 2 x 2 blocks (of interleaved pairs)."""
    values, vectors = torch.linalg.eig(B)
    order = values.imag.argsort(descending=True)[: D // 2]
    angles, columns = values.imag[order], vectors[:, order]
    P = torch.stack([columns.real, -columns.imag], -1).flatten(-2) * 2**0.5
    return P, angles


def test_between_linear_layers_and_a_product_it_is_rope_with_other_weights() -> None:
    """And no longer where a feature map stands between."""
    B = skew()[0]
    P, angles = in_basis(B)
    torch.testing.assert_close(P.T @ P, torch.eye(D, dtype=torch.float64))
    T = 5
    q, k = vectors(T)[:, :, :1], vectors(T, seed=2)[:, :, :1]
    positions = torch.arange(T)[None]

    def general(x: Tensor) -> Tensor:
        return turned_by(x, positions, turns(B[None], 3))

    def rope(x: Tensor) -> Tensor:
        cos, sin = (
            (positions[..., None, None] * angles).cos(),
            (positions[..., None, None] * angles).sin(),
        )
        return rotate(x, cos, sin, "interleaved")

    def scores(q: Tensor, k: Tensor) -> Tensor:
        return torch.einsum("bihd,bjhd->bhij", q, k)

    want = scores(general(q), general(k))
    torch.testing.assert_close(scores(rope(q @ P), rope(k @ P)), want)

    def phi(x: Tensor) -> Tensor:
        return F.elu(x) + 1

    want = scores(general(phi(q)), general(phi(k)))
    assert not torch.allclose(scores(rope(phi(q @ P)), rope(phi(k @ P))), want, atol=1e-2)


def test_gradients_agree_with_finite_differences() -> None:
    x, positions = vectors(3), torch.tensor([[0, 2, 5]])
    a = skew().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, a: turned_by(x, positions, turns(a - a.mT, 3)), [x.requires_grad_(), a]
    )


def test_half_precision_is_turned_in_single() -> None:
    x = vectors(9)
    exact = turned_by(x, torch.arange(9)[None], turns(skew(), 4))
    got = turned_by(x.bfloat16(), torch.arange(9)[None], turns(skew().float(), 4))
    assert got.dtype == torch.bfloat16
    assert (got - exact).abs().max() < 0.03
