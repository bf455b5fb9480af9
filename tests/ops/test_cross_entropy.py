"""Cross-entropy of a linear head without a (tokens, V) tensor."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from retnet.ops import cross_entropy
from retnet.ops.cross_entropy import IGNORED, linear_cross_entropy
from support import assert_within_budget, kept_bytes


def plain(h: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = h @ weight.T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def arguments(N: int, V: int = 37, D: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    h = torch.randn(N, D, dtype=torch.float64)
    targets = torch.randint(V, (N,))
    targets[::3] = IGNORED
    return h, torch.randn(V, D, dtype=torch.float64), targets


def with_gradients(function, h: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
    leaves = [h.detach().requires_grad_(), weight.detach().requires_grad_()]
    total = function(*leaves, targets)
    return [total.detach(), *torch.autograd.grad(0.7 * total, leaves)]


@pytest.mark.parametrize("N", [1, 2, 9, 10, 11, 50])
def test_value_and_gradients_are_those_of_the_plain_computation(
    N: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of ten rows: fewer, just as many, more, a short last one."""
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 10 * 37)
    h, weight, targets = arguments(N)
    got = with_gradients(linear_cross_entropy, h, weight, targets)
    for a, b in zip(got, with_gradients(plain, h, weight, targets), strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_agrees_with_finite_differences() -> None:
    h, weight, targets = arguments(5, 6, 3)
    leaves = [h.requires_grad_(), weight.requires_grad_()]
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets), leaves)


def test_a_vocabulary_larger_than_a_chunk_takes_one_row_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 5)
    h, weight, targets = arguments(4)
    torch.testing.assert_close(linear_cross_entropy(h, weight, targets), plain(h, weight, targets))


def test_nothing_asked_gives_zero_and_no_gradient() -> None:
    h, weight, targets = arguments(7)
    got = with_gradients(linear_cross_entropy, h, weight, torch.full_like(targets, IGNORED))
    for x in got:
        assert torch.equal(x, torch.zeros_like(x))


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_the_two_may_be_frozen(which: int) -> None:
    h, weight, targets = arguments(9)
    want = with_gradients(plain, h, weight, targets)[1 + which] / 0.7
    leaf = (h, weight)[which].requires_grad_()
    (grad,) = torch.autograd.grad(linear_cross_entropy(h, weight, targets), leaf)
    torch.testing.assert_close(grad, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_value_and_gradients_err_at_most_twice_as_much_as_plainly(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 64 * 100)
    h, weight, targets = arguments(600, 100, 32)
    h, weight = (0.3 * x.to(dtype) for x in (h, weight))
    got = with_gradients(linear_cross_entropy, h, weight, targets)
    usual = with_gradients(plain, h, weight, targets)
    exact = with_gradients(plain, h.double(), weight.double(), targets)
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-3, atol=0)
    for a, b, c in zip(got[1:], usual[1:], exact[1:], strict=True):
        assert_within_budget(a, b, c)


def test_logits_in_the_hundreds_do_not_overflow() -> None:
    h, weight, targets = arguments(9)
    h, weight = (100 * h).float(), weight.float()
    got = with_gradients(linear_cross_entropy, h, weight, targets)
    for a, b in zip(got, with_gradients(plain, h, weight, targets), strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b)


def test_autocast_computes_products_in_its_dtype_and_sums_in_float32() -> None:
    h, weight, targets = arguments(40)
    h, weight = (0.3 * h).float().requires_grad_(), weight.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_cross_entropy(h, weight, targets)
    want = linear_cross_entropy(h.bfloat16(), weight.bfloat16(), targets)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    grads = torch.autograd.grad(got, [h, weight])
    assert [g.dtype for g in grads] == [torch.float32] * 2
    exact = torch.autograd.grad(plain(h, weight, targets), [h, weight])
    for a, b in zip(grads, exact, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


def test_no_tensor_of_tokens_by_vocabulary_is_kept() -> None:
    N, V, D = 300, 1000, 4
    h, weight, targets = torch.randn(N, D), torch.randn(V, D), torch.randint(V, (N,))
    h.requires_grad_(), weight.requires_grad_()
    sizes = kept_bytes(lambda: linear_cross_entropy(h, weight, targets)).values()
    assert 0 < max(sizes) <= 4 * V * D


@pytest.mark.parametrize("target", [-1, -2, 37, 1000])
def test_a_target_outside_the_vocabulary_is_an_error(target: int) -> None:
    """Only `IGNORED` may be negative: a wrong id must not count as token 0."""
    h, weight, targets = arguments(5)
    targets[1] = target
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        linear_cross_entropy(h, weight, targets)


def test_without_gradients_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    h, weight, targets = arguments(9)
    asked = linear_cross_entropy(h, weight, targets)
    monkeypatch.setattr(torch, "zeros_like", None)  # what gradients begin with
    with torch.no_grad():
        total = linear_cross_entropy(h.requires_grad_(), weight.requires_grad_(), targets)
    torch.testing.assert_close(total, asked)
