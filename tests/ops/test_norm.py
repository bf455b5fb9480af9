"""Root-mean-square norm with its gradient written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from retnet.ops import blocks
from retnet.ops.norm import add_rms_norm, rms_norm
from support import assert_within_budget


def by_definition(x: Tensor, weight: Tensor | None, eps: float | Tensor) -> Tensor:
    exact = x if x.dtype == torch.float64 else x.float()
    y = (exact / (exact.square().mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype)
    return y if weight is None else y * weight.to(x.dtype)


def arguments(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x, a weight, and an eps for each row."""
    x = torch.randn(4, 7, 3, 10, dtype=torch.float64).to(dtype)
    x[0, 0] *= 1e-3  # rows in which eps matters
    return x, torch.randn(10, dtype=torch.float64).to(dtype), torch.rand(4, 7, 3, 1).to(dtype)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("eps", [1e-6, 0.1, "each row", "each token"])
def test_norm_is_its_definition(weighted: bool, eps: float | str) -> None:
    x, weight, per_row = arguments()
    chosen = {"each row": per_row, "each token": per_row[:1]}.get(str(eps), eps)
    got = rms_norm(x, weight if weighted else None, chosen)  # type: ignore[arg-type]
    torch.testing.assert_close(got, by_definition(x, weight if weighted else None, chosen))  # type: ignore[arg-type]


def test_norm_is_pytorch_s_where_there_is_one_eps() -> None:
    x, weight, _ = arguments()
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), F.rms_norm(x, (10,), weight, 1e-3))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("each_row", [False, True])
def test_gradient_agrees_with_finite_differences(weighted: bool, each_row: bool) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    eps = torch.rand(2, 3, 1, dtype=torch.float64) if each_row else 0.01
    if weighted:
        assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, eps), [x, weight])
    else:
        assert torch.autograd.gradcheck(lambda x: rms_norm(x, None, eps), [x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_norm_and_gradients_err_at_most_twice_as_much_as_the_definition(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 64, dtype=torch.float64).to(dtype)
    weight = torch.randn(64, dtype=torch.float64).to(dtype)
    d_out = torch.randn(500, 64, dtype=torch.float64).to(dtype)
    results = []
    for function, cast in (
        (rms_norm, dtype),
        (by_definition, dtype),
        (by_definition, torch.float64),
    ):
        leaves = [t.to(cast).requires_grad_() for t in (x, weight)]
        y = function(leaves[0], leaves[1], 1e-6)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, d_out.to(cast))])
    for got, plain, want in zip(*results, strict=True):
        assert_within_budget(got, plain, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_squares_beyond_the_dtype_s_range_do_not_overflow(dtype: torch.dtype) -> None:
    """T11: 60,000 squared is far beyond float16."""
    x = torch.full((2, 8), 6e4).to(dtype).requires_grad_()
    y = rms_norm(x, None, 1e-6)
    torch.testing.assert_close(y.float(), torch.ones(2, 8), rtol=1e-2, atol=0)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_row_of_zeros_stays_zero_and_its_gradient_finite() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_norm(x, None, 1e-6)
    assert torch.equal(y, torch.zeros(2, 8))
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.isfinite().all()


def test_gradient_of_a_weight_in_another_dtype_has_that_dtype() -> None:
    """A float32 weight may meet bfloat16 activations."""
    x = torch.randn(3, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(8, requires_grad=True)
    y = rms_norm(x, weight, 1e-6)
    grads = torch.autograd.grad(y.float().sum(), [x, weight])
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
@pytest.mark.parametrize("given", ["both", "no y", "no weight"])
def test_sum_and_norm_together_are_one_after_the_other(
    block_bytes: int, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    x, y = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    y_, weight_ = None if given == "no y" else y, None if given == "no weight" else weight

    def together(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y_, weight_ = None if given == "no y" else y, None if given == "no weight" else weight
        return add_rms_norm(x, y_, weight_, 0.01, torch.float64)

    total = x if y_ is None else x + y_
    for got, want in zip(
        together(x, y, weight), (total, by_definition(total, weight_, 0.01)), strict=True
    ):
        torch.testing.assert_close(got, want)
    assert torch.autograd.gradcheck(together, [x, y, weight])


@pytest.mark.parametrize("y_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_float32_stream_is_normalised_into_bfloat16_within_its_rounding(
    y_dtype: torch.dtype,
) -> None:
    """As under autocast; the plain form adds in float32, normalises there and rounds last."""
    torch.manual_seed(0)
    x, y, weight = torch.randn(500, 64), torch.randn(500, 64).to(y_dtype), torch.randn(64)
    d_total, d_normed = torch.randn(500, 64), torch.randn(500, 64).bfloat16()

    def plainly(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + y
        normed = by_definition(total, weight, 1e-6)
        return total, normed.to(torch.bfloat16) if x.dtype == torch.float32 else normed

    def ours(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return add_rms_norm(x, y, weight, 1e-6, torch.bfloat16)

    results = []
    for function, cast in ((ours, None), (plainly, None), (plainly, torch.float64)):
        leaves = [t.detach().to(cast or t.dtype).requires_grad_() for t in (x, y, weight)]
        total, normed = function(*leaves)
        grads = torch.autograd.grad(
            [total, normed], leaves, [d_total.to(total.dtype), d_normed.to(normed.dtype)]
        )
        results.append([total.detach(), normed.detach(), *grads])
    for got, usual, want in zip(*results, strict=True):
        assert_within_budget(got, usual, want)


@pytest.mark.parametrize("used", [0, 1])
def test_a_stream_or_a_norm_that_nobody_uses_has_no_say_in_the_gradient(used: int) -> None:
    x, y = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    got = add_rms_norm(x, y, None, 0.01, torch.float64)[used]
    want = (x + y, by_definition(x + y, None, 0.01))[used]
    for a, b in zip(
        torch.autograd.grad(got.square().sum(), [x, y]),
        torch.autograd.grad(want.square().sum(), [x, y]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_one_vector_has_a_gradient_however_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 16)
    x, weight = (torch.randn(12, dtype=torch.float64, requires_grad=True) for _ in range(2))
    results = [
        torch.autograd.grad(norm.square().sum(), [x, weight])
        for norm in (rms_norm(x, weight, 1e-3), F.rms_norm(x, (12,), weight, 1e-3))
    ]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
