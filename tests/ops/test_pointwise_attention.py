"""Attention without a norm over keys is its definition, in memory that grows with T."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from retnet.ops import Layout
from retnet.ops.pointwise_attention import (
    KERNELS,
    QUERY_BLOCK,
    Kernel,
    laplace,
    pointwise_attention,
    relu2,
)
from support import kept_bytes

B = 2
every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def inputs(T: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, B, T, 4, generator=rng, dtype=torch.float64)
    return q, k, torch.randn(B, T, 6, generator=rng, dtype=torch.float64)


def definition(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> Tensor:
    return KERNELS[kernel](q @ k.mT).tril() @ v


@every_kernel
@pytest.mark.parametrize("T", [1, 7, QUERY_BLOCK + 5])
def test_outputs_and_gradients_are_those_of_the_definition(kernel: Kernel, T: int) -> None:
    found = []
    for function in (lambda *x: pointwise_attention(*x, kernel=kernel)[0], None):
        x = [y.requires_grad_() for y in inputs(T)]
        o = definition(*x, kernel) if function is None else function(*x)  # type: ignore[arg-type]
        weights = torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).double()
        found.append([o, *torch.autograd.grad((o * weights).sum(), x)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@every_kernel
def test_long_rows_with_padding_and_starts_are_their_documents_alone(kernel: Kernel) -> None:
    T = QUERY_BLOCK + 40
    q, k, v = inputs(T)
    rng = torch.Generator().manual_seed(2)
    valid = torch.rand(B, T, generator=rng) < 0.8
    starts = (torch.rand(B, T, generator=rng) < 0.01) & valid
    o, _ = pointwise_attention(
        q, k, v, kernel=kernel, layout=Layout.of(B, T, valid=valid, starts=starts)
    )
    for b in range(B):
        document = starts[b].long().cumsum(0)
        for d in document.unique():
            own = valid[b] & (document == d)
            want = definition(q[b, own], k[b, own], v[b, own], kernel)
            torch.testing.assert_close(o[b, own], want)
    assert torch.equal(o[~valid], torch.zeros_like(o[~valid]))


def test_memory_for_gradients_grows_with_the_row_and_not_with_its_square() -> None:
    def kept(T: int) -> int:
        q, k, v = (x.requires_grad_() for x in inputs(T))
        return sum(kept_bytes(lambda: pointwise_attention(q, k, v, kernel="relu2")).values())

    assert kept(4 * QUERY_BLOCK) < 20 * kept(QUERY_BLOCK + 1)
    assert kept(4 * QUERY_BLOCK) < 4 * QUERY_BLOCK**2


def test_laplace_touches_relu2_where_it_is_an_approximation() -> None:
    """Equal values and slopes at sqrt(2), by which its mean and deviation were chosen."""
    at = torch.tensor(math.sqrt(0.5), dtype=torch.float64, requires_grad=True)
    functions: list[Callable[[Tensor], Tensor]] = [laplace, relu2]
    values = [f(at) for f in functions]
    slopes = [torch.autograd.grad(y, at)[0] for y in values]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(slopes[0], slopes[1])
    assert laplace(torch.tensor(10.0)) == 1  # bounded, unlike the other


def test_rows_spread_over_ranks_are_refused() -> None:
    q, k, v = inputs(4)
    layout = Layout.of(B, 4)
    object.__setattr__(layout, "spread", object())
    with pytest.raises(ValueError, match="must not be spread over several"):
        pointwise_attention(q, k, v, kernel="relu2", layout=layout)
