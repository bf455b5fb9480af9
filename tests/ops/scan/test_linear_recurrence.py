"""Every form of the diagonal recurrence is the loop, in outputs, states and gradients."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from retnet.ops import Layout
from retnet.ops.scan import linear_recurrence
from retnet.ops.scan.forms import FORMS, block_length
from retnet.types import Form
from support import assert_within_budget
from unchecked import unchecked

LENGTHS = (1, 2, 3, 8, 9, 31, 64, 65, 130)
B, N = 2, 3

every_form = pytest.mark.parametrize("form", get_args(Form))
every_kind = pytest.mark.parametrize(
    ("complex_", "per_token"), [(False, False), (False, True), (True, False), (True, True)]
)


def draw(T: int, complex_: bool, per_token: bool, wide: tuple[int, ...] = (N,)) -> list[Tensor]:
    """a, b and a state in float64 or complex128; factors between 0 and 1 in size."""
    dtype = torch.complex128 if complex_ else torch.float64
    a = torch.rand(*((B, T) if per_token else ()), *wide, dtype=torch.float64)
    if complex_:
        a = torch.polar(a, 6 * torch.rand_like(a))
    return [a, torch.randn(B, T, *wide, dtype=dtype), torch.randn(B, *wide, dtype=dtype)]


def loop(a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, without any of the op's code."""
    all_h, h = [], state
    for t in range(b.shape[1]):
        h = (a[:, t] if a.ndim == b.ndim else a) * h + b[:, t]
        all_h.append(h)
    return torch.stack(all_h, 1), h


def gradients(function: Any, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64)
    for output in function(*leaves):
        product = output * torch.randn_like(output)
        loss = loss + (product.real + 0.3 * product.imag if product.is_complex() else product).sum()
    return list(torch.autograd.grad(loss, leaves))


@every_form
@every_kind
@pytest.mark.parametrize("T", LENGTHS)
def test_every_form_is_the_loop(T: int, complex_: bool, per_token: bool, form: Form) -> None:
    inputs = draw(T, complex_, per_token)
    for got, want in zip(linear_recurrence(*inputs, form=form), loop(*inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@every_form
@every_kind
@pytest.mark.parametrize("T", [1, 9, 33])
def test_gradients_of_every_form_are_those_of_the_loop(
    T: int, complex_: bool, per_token: bool, form: Form
) -> None:
    inputs = draw(T, complex_, per_token)
    got = gradients(lambda *x: linear_recurrence(*x, form=form), inputs)
    for mine, want in zip(got, gradients(loop, inputs), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-12, atol=1e-12)


@every_form
def test_channels_may_have_several_axes(form: Form) -> None:
    inputs = draw(11, True, False, (2, 3))
    h, state = linear_recurrence(*inputs, form=form)
    want, _ = loop(*inputs)
    torch.testing.assert_close(h, want)
    assert state.shape == (B, 2, 3)


@every_form
@pytest.mark.parametrize("per_token", [False, True])
def test_split_anywhere_equals_one_pass(form: Form, per_token: bool) -> None:
    a, b, state = draw(12, True, per_token)
    h, after = linear_recurrence(a, b, state, form=form)
    for t in range(1, 12):
        parts = (a[:, :t], a[:, t:]) if per_token else (a, a)
        first, between = linear_recurrence(parts[0], b[:, :t], state, form=form)
        second, last = linear_recurrence(parts[1], b[:, t:], between, form=form)
        torch.testing.assert_close(torch.cat([first, second], 1), h)
        torch.testing.assert_close(last, after)


@every_form
@pytest.mark.parametrize("per_token", [False, True])
def test_padding_holds_the_state_and_a_start_forgets_it(form: Form, per_token: bool) -> None:
    a, b, state = draw(9, True, per_token)
    valid = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]]).bool()
    starts = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1, 0, 0, 0]]).bool()
    layout = Layout.of(B, 9, valid=valid, starts=starts)
    h, after = linear_recurrence(
        a, torch.where(valid[..., None], b, torch.inf), state, layout=layout, form=form
    )
    for row in range(B):
        running = state[row]
        for t in range(9):
            if valid[row, t]:
                kept = 0 if starts[row, t] else running
                running = (a[row, t] if per_token else a) * kept + b[row, t]
            torch.testing.assert_close(h[row, t], running)
        torch.testing.assert_close(after[row], running)


@pytest.mark.parametrize("form", ["parallel", "chunkwise"])
@every_kind
def test_float32_errs_as_the_recurrent_form_does(
    form: Form, complex_: bool, per_token: bool
) -> None:
    a, b, state = draw(700, complex_, per_token)
    a = a / a.abs() * (0.9 + 0.0999 * a.abs())  # long memories
    exact, _ = linear_recurrence(a, b, state, form="recurrent")
    rounded = [x.to(torch.complex64 if complex_ else torch.float32) for x in (a, b, state)]
    plain, got = (linear_recurrence(*rounded, form=f)[0] for f in ("recurrent", form))
    if complex_:
        got, plain, exact = (torch.view_as_real(x) for x in (got, plain, exact))
    assert_within_budget(got, plain, exact)


@every_form
def test_factors_so_small_that_their_product_vanishes_lose_nothing(form: Form) -> None:
    """What a global cumulative product, or a division by one, would get wrong."""
    a = torch.tensor([0.0, 1e-30, 1e-3, 1.0])
    b = torch.randn(1, 300, 4)
    h, _ = linear_recurrence(a, b, form=form)
    want, _ = loop(a.double(), b.double(), torch.zeros(1, 4).double())
    torch.testing.assert_close(h, want.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(h[..., 0], b[..., 0])


@every_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_leave_the_state_in_float32(
    form: Form, dtype: torch.dtype
) -> None:
    a, b, _ = (x.to(dtype) for x in draw(20, False, True))
    with torch.autocast("cpu", torch.bfloat16):
        h, state = linear_recurrence(a, b, form=form)
    want, _ = loop(a.double(), b.double(), torch.zeros(B, N).double())
    assert h.dtype == state.dtype == torch.float32
    torch.testing.assert_close(h, want.float(), rtol=1e-5, atol=1e-5)


def test_a_real_factor_takes_the_real_part_of_its_gradient() -> None:
    a, b, state = draw(10, True, False)
    real = a.abs().requires_grad_()
    h, _ = linear_recurrence(real, b, state)
    h.real.sum().backward()
    twin = a.abs().requires_grad_()
    loop(twin, b, state)[0].real.sum().backward()
    torch.testing.assert_close(real.grad, twin.grad)


@every_form
def test_nothing_given_is_written_to(form: Form) -> None:
    inputs = draw(40, False, True)
    kept = [x.clone() for x in inputs]
    gradients(lambda *x: linear_recurrence(*x, form=form), inputs)
    for got, want in zip(inputs, kept, strict=True):
        assert torch.equal(got, want)


def test_blocks_are_few_calls() -> None:
    for T in (1, 7, 100, 4096, 100_000):
        C = block_length(T)
        calls = 2 * C + T // C
        assert calls <= max(3.5 * T**0.5, T + 2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"b": torch.ones(2, 0, 3)}, "T at least 1"),
        ({"a": torch.ones(2)}, r"a has shape \(2,\); beside b \(2, 4, 3\) it must be"),
        ({"a": torch.ones(3, dtype=torch.int64)}, "a has dtype torch.int64"),
        ({"state": torch.ones(3)}, r"state has shape \(3,\); it must be \(B, \*N\) = \(2, 3\)"),
        ({"state": torch.ones(2, 3).double()}, "keep states in the dtype they came in"),
        ({"a": torch.ones(3, device="meta")}, "a is on meta and b on cpu"),
        ({"layout": Layout.of(2, 5, valid=torch.ones(2, 5).bool())}, "layout.valid has shape"),
        ({"form": "magic"}, 'no form "magic"; choose one of parallel, recurrent, chunkwise'),
    ],
)
def test_errors_say_what_to_do(change: dict[str, Any], match: str) -> None:
    given = {"a": torch.ones(3), "b": torch.ones(2, 4, 3), "state": None} | change
    with unchecked(), pytest.raises(ValueError, match=match):
        linear_recurrence(**given)


def test_every_form_has_its_name_in_the_glossary() -> None:
    assert set(FORMS) == set(get_args(Form))
