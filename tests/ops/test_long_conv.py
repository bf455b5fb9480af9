"""The convolution by FFT is the sum that defines it, with any past."""

from typing import Any

import pytest
import torch
from torch import Tensor

from retnet.ops.long_conv import ConvForm, fast_length, long_conv
from unchecked import unchecked

B, T, C = 3, 11, 4
FORMS: tuple[ConvForm, ...] = ("fft", "direct")
every_form = pytest.mark.parametrize("form", FORMS)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def by_definition(u: Tensor, kernel: Tensor) -> Tensor:
    """One row and one sample at a time."""
    o = torch.zeros_like(u)
    for n in range(u.shape[1]):
        for j in range(max(0, n + 1 - len(kernel)), n + 1):
            o[:, n] += kernel[n - j] * u[:, j]
    return o


@every_form
@pytest.mark.parametrize("taps", [1, T - 1, T, T + 1, 40])
def test_every_form_is_the_sum(form: ConvForm, taps: int) -> None:
    u, kernel = draw(B, T, C), draw(taps, C)
    torch.testing.assert_close(long_conv(u, kernel, form=form), by_definition(u, kernel))
    one = long_conv(u[:, :1], kernel, form=form)
    torch.testing.assert_close(one, by_definition(u[:, :1], kernel))


@every_form
def test_channels_may_have_several_axes_and_share_a_kernel(form: ConvForm) -> None:
    u, kernel = draw(B, T, C, 5), draw(T, C, 1)
    want = by_definition(u.flatten(2), kernel.expand(-1, -1, 5).flatten(1)).unflatten(2, (C, 5))
    torch.testing.assert_close(long_conv(u, kernel, form=form), want)


@every_form
@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("taps", [3, T])
def test_a_signal_may_come_in_two_parts(form: ConvForm, new: int, taps: int) -> None:
    u, kernel = draw(B, T, C), draw(taps, C)
    want = by_definition(u, kernel)[:, -new:]
    o = long_conv(u[:, -new:], kernel, u[:, :-new], form=form)
    torch.testing.assert_close(o, want)
    count = torch.full((B,), T - new)
    past = torch.cat([u[:, :-new], draw(B, 3, C)], 1)  # slots that are not used
    o = long_conv(u[:, -new:], kernel, past, count=count, form=form)
    torch.testing.assert_close(o, want)


@every_form
@pytest.mark.parametrize("new", [1, 4])
def test_rows_may_have_pasts_of_different_lengths(form: ConvForm, new: int) -> None:
    u, kernel, past = draw(B, new, C), draw(9, C), draw(B, 7, C)
    count = torch.tensor([0, 7, 3])
    o = long_conv(u, kernel, past, count=count, form=form)
    for b in range(B):
        signal = torch.cat([past[b : b + 1, : count[b]], u[b : b + 1]], 1)
        torch.testing.assert_close(o[b : b + 1], by_definition(signal, kernel)[:, -new:])


@pytest.mark.parametrize("new", [1, 4])
def test_gradients_of_the_forms_agree(new: int) -> None:
    given = draw(B, new, C), draw(9, C), draw(B, 7, C)
    count, weights = torch.tensor([0, 7, 3]), draw(B, new, C)
    grads: list[Any] = []
    for form in FORMS:
        u, kernel, past = (x.clone().requires_grad_() for x in given)
        (long_conv(u, kernel, past, count=count, form=form) * weights).sum().backward()
        grads.append([u.grad, kernel.grad, past.grad])
    torch.testing.assert_close(grads[0], grads[1])
    assert all(grad.abs().max() > 0 for grad in grads[0])


def test_half_precision_is_summed_in_float32() -> None:
    u, kernel = draw(B, 300, C, dtype=torch.bfloat16), draw(300, C, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        o = long_conv(u, kernel)
    exact = long_conv(u.double(), kernel.double(), form="direct")
    assert o.dtype == torch.float32
    assert (o - exact).abs().max() < 1e-5 * exact.abs().max()


def test_transforms_are_long_enough_and_of_fast_lengths() -> None:
    for n in range(1, 200):
        length = fast_length(n)
        assert n <= length < 2 * n
        while length % 2 == 0:
            length //= 2
        assert length in (1, 3)


def test_an_unknown_form_is_refused() -> None:
    with (
        unchecked(),
        pytest.raises(ValueError, match="long_conv has no slow; choose one of fft, direct"),
    ):
        long_conv(draw(B, T, C), draw(T, C), form="slow")  # type: ignore[arg-type]
