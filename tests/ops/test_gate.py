"""Products with an activated gate, their gradients written out."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from retnet.ops import blocks
from retnet.ops.gate import ACTIVATIONS, Activation, activate, gated, gated_rms_norm
from support import assert_within_budget

BY_HAND = {"swish": F.silu, "gelu": F.gelu, "relu": F.relu, "sigmoid": torch.sigmoid}


def plainly_gated(a: Tensor, b: Tensor, activation: str) -> Tensor:
    return BY_HAND[activation](a) * b


def plainly_normed(o: Tensor, gate: Tensor, eps: float | Tensor) -> Tensor:
    exact = o if o.dtype == torch.float64 else o.float()
    inverse = (exact.square().mean(-1, keepdim=True) + eps).rsqrt()
    return F.silu(gate) * (o * inverse.to(o.dtype)).to(gate.dtype)


def heads_first(o: Tensor) -> Tensor:
    """The same numbers, in memory as (B, H, T, D_v)."""
    return o.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
def test_gradients_agree_with_finite_differences(
    activation: Activation, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    a, b = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: gated(a, b, activation), [a, b])
    torch.testing.assert_close(gated(a, b, activation), plainly_gated(a, b, activation))
    torch.testing.assert_close(activate(a, activation), BY_HAND[activation](a))


@pytest.mark.parametrize("each_row", [False, True])
@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
def test_gated_norm_is_its_formula_and_so_is_its_gradient(
    each_row: bool, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    o, gate = (torch.randn(2, 3, 2, 4, dtype=torch.float64) for _ in range(2))
    o, gate = heads_first(o).requires_grad_(), gate.requires_grad_()
    eps = torch.rand(1, 3, 2, 1, dtype=torch.float64) if each_row else 0.01
    torch.testing.assert_close(gated_rms_norm(o, gate, eps), plainly_normed(o, gate, eps))
    assert torch.autograd.gradcheck(lambda o, gate: gated_rms_norm(o, gate, eps), [o, gate])


def test_the_gradient_of_o_lies_in_memory_as_o_does() -> None:
    """Retention would have to copy it otherwise."""
    o = heads_first(torch.randn(2, 5, 3, 4)).requires_grad_()
    (d_o,) = torch.autograd.grad(gated_rms_norm(o, torch.randn(2, 5, 3, 4), 1e-6).sum(), o)
    assert d_o.stride() == o.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*ACTIVATIONS, "norm"])
def test_results_and_gradients_err_at_most_twice_as_much_as_plainly(
    dtype: torch.dtype, name: str
) -> None:
    torch.manual_seed(0)
    pair = [torch.randn(2, 50, 2, 64, dtype=torch.float64).to(dtype) for _ in range(2)]
    d_out = torch.randn(2, 50, 2, 64, dtype=torch.float64).to(dtype)
    if name == "norm":
        ours, plain = partial(gated_rms_norm, eps=1e-6), partial(plainly_normed, eps=1e-6)
    else:
        ours, plain = partial(gated, activation=name), partial(plainly_gated, activation=name)  # type: ignore[arg-type]
    results = []
    for function, cast in ((ours, dtype), (plain, dtype), (plain, torch.float64)):
        leaves = [t.to(cast).requires_grad_() for t in pair]
        y = function(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, d_out.to(cast))])
    for got, usual, want in zip(*results, strict=True):
        assert_within_budget(got, usual, want)


def test_a_float32_o_meets_a_float16_gate() -> None:
    """Beyond float16's range before the norm; see `Retention.forward`."""
    o = (1e6 * torch.randn(1, 5, 2, 8)).requires_grad_()
    gate = torch.randn(1, 5, 2, 8).half().requires_grad_()
    y = gated_rms_norm(o, gate, 1e-6)
    assert y.dtype == torch.float16
    torch.testing.assert_close(
        y.float(), plainly_normed(o, gate.float(), 1e-6), rtol=1e-2, atol=1e-3
    )
    grads = torch.autograd.grad(y.float().sum(), [o, gate])
    assert [g.dtype for g in grads] == [torch.float32, torch.float16]
    assert all(g.isfinite().all() for g in grads)


def test_without_gradients_the_numbers_are_the_same() -> None:
    o, gate = (torch.randn(2, 3, 2, 4, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        torch.testing.assert_close(gated_rms_norm(o, gate, 0.1), plainly_normed(o, gate, 0.1))
        torch.testing.assert_close(gated(o, gate, "gelu"), plainly_gated(o, gate, "gelu"))
