"""Several products of one input, their gradient written out."""

import pytest
import torch
from torch import Tensor

from retnet.ops import linear
from retnet.ops.linear import products
from support import assert_within_budget

WIDTHS = [(5,), (3, 3, 8, 2), (8, 3, 3), (3, 8)]


def plainly(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return tuple(x @ weight.T for weight in weights)


def arguments(widths: tuple[int, ...], D: int = 6, T: int = 7) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, T, D, dtype=torch.float64)] + [
        torch.randn(width, D, dtype=torch.float64) for width in widths
    ]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("wide", [1, 6, 100])
def test_products_and_gradients_are_those_of_the_layers_one_by_one(
    widths: tuple[int, ...], wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone, neighbours joined until wide enough, all joined."""
    monkeypatch.setattr(linear, "WIDE", wide)
    leaves = [t.requires_grad_() for t in arguments(widths)]
    with torch.no_grad():
        alone = products(*leaves)
    for got, same, want in zip(products(*leaves), alone, plainly(*leaves), strict=True):
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(same, want)
    assert torch.autograd.gradcheck(lambda *leaves: products(*leaves), leaves)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("rows", [3, 256])
def test_bfloat16_errs_at_most_twice_as_much_as_plainly(
    widths: tuple[int, ...], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weight gradients come from transposed tensors there, in blocks that do and do not fit."""
    monkeypatch.setattr(linear, "TRANSPOSED_ROWS", rows)
    given = [t.bfloat16() for t in arguments(widths, D=32, T=100)]
    d_outs = [torch.randn(2, 100, width).bfloat16() for width in widths]
    results = []
    for function, dtype in (
        (products, torch.bfloat16),
        (plainly, torch.bfloat16),
        (plainly, torch.float64),
    ):
        leaves = [t.to(dtype).requires_grad_() for t in given]
        ys = function(*leaves)
        grads = torch.autograd.grad(ys, leaves, [d.to(dtype) for d in d_outs])
        results.append([*(y.detach() for y in ys), *grads])
    for got, usual, want in zip(*results, strict=True):
        assert_within_budget(got, usual, want)


def test_autocast_computes_in_its_dtype_and_gradients_have_the_weights() -> None:
    x, *weights = (t.float().requires_grad_() for t in arguments((3, 3, 8)))
    with torch.autocast("cpu", torch.bfloat16):
        ys = products(x, *weights)
        want = products(x.bfloat16(), *(w.bfloat16() for w in weights))
    assert [y.dtype for y in ys] == [torch.bfloat16] * 3
    assert all(torch.equal(a, b) for a, b in zip(ys, want, strict=True))
    grads = torch.autograd.grad([y.float().sum() for y in ys], [x, *weights])
    assert [g.dtype for g in grads] == [torch.float32] * 4
    assert all(g.is_contiguous() for g in grads)


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
def test_any_of_them_may_be_frozen(frozen: int) -> None:
    leaves = [t.requires_grad_(i != frozen) for i, t in enumerate(arguments((3, 3, 8)))]
    free = [t for t in leaves if t.requires_grad]
    got, want = (
        torch.autograd.grad(sum(y.square().sum() for y in function(*leaves)), free)  # type: ignore[arg-type]
        for function in (products, plainly)
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_one_vector_has_gradients_too() -> None:
    x, *weights = (t.requires_grad_() for t in arguments((3, 8), T=1))
    got, want = (
        torch.autograd.grad([y.square().sum() for y in function(x[0, 0], *weights)], [x, *weights])
        for function in (products, plainly)
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_an_output_that_nobody_uses_has_a_gradient_of_zero() -> None:
    x, *weights = (t.requires_grad_() for t in arguments((3, 8)))
    first, _ = products(x, *weights)
    d_x, d_unused = torch.autograd.grad(first.sum(), [x, weights[1]])
    torch.testing.assert_close(d_x, weights[0].sum(0).expand_as(x))
    assert not d_unused.any()


def test_gradients_side_by_side_are_not_copied() -> None:
    both = torch.randn(7, 8)
    joined = linear._side_by_side(both.split([3, 5], 1))
    assert joined.data_ptr() == both.data_ptr()
    assert torch.equal(joined, both)
    swapped = linear._side_by_side(both.split([3, 5], 1)[::-1])
    assert torch.equal(swapped, torch.cat([both[:, 3:], both[:, :3]], 1))
