"""Rounding, overflow and memory: what a form may cost beside the plain one."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ops.reference import Case, random_case, recurrence
from retnet.ops import Layout, retention
from retnet.types import Form
from support import assert_within_budget, kept_bytes

FORMS = ("parallel", "recurrent", "chunkwise")
forms = pytest.mark.parametrize("form", FORMS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
# many rows: the largest error of few is a matter of luck
SHAPE = (16, 130, 4, 16, 24)
NAMES = ("o", "S", "d_q", "d_k", "d_v", "d_state")


def with_gradients(function: Any, case: Case, autocast: torch.dtype | None = None) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in (*case[:3], case.state) if x is not None]
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        o, S = function(case.with_inputs(leaves[:3])._replace(state=leaves[3]))
    rng = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=rng).to(x.dtype) for x in (o, S)]
    grads = torch.autograd.grad((o, S), leaves, weights)
    return [o.detach(), S.detach(), *grads]


def op(form: Form, chunk_size: int | None = None) -> Any:
    return lambda case: retention(*case[:5], layout=case.layout(), form=form, chunk_size=chunk_size)


@cache
def budget(dtype: torch.dtype, masked: bool) -> tuple[Case, list[Tensor], list[Tensor]]:
    """A case, the plain form's results in `dtype`, and the float64 recurrence's."""
    case = random_case(SHAPE, state=True, dtype=dtype)
    if masked:
        rng = torch.Generator().manual_seed(2)
        case = case._replace(
            valid=torch.rand(SHAPE[:2], generator=rng) < 0.8,
            starts=torch.rand(SHAPE[:2], generator=rng) < 0.02,
        )
    exact = with_gradients(op("recurrent"), case.double())
    return case, with_gradients(op("parallel"), case), exact


@dtypes
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk_size", [16, 64, None])
def test_chunkwise_errs_at_most_twice_as_much_as_parallel(
    dtype: torch.dtype, masked: bool, chunk_size: int | None
) -> None:
    case, plain, exact = budget(dtype, masked)
    got = with_gradients(op("chunkwise", chunk_size), case)
    for a, b, c in zip(got, plain, exact, strict=True):
        assert_within_budget(a, b, c)


@dtypes
@pytest.mark.parametrize("masked", [False, True])
def test_recurrent_errs_at_most_twice_as_much_as_parallel(dtype: torch.dtype, masked: bool) -> None:
    case, plain, exact = budget(dtype, masked)
    for a, b, c in zip(with_gradients(op("recurrent"), case), plain, exact, strict=True):
        assert_within_budget(a, b, c)


@forms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("state", [False, True])
def test_outputs_have_the_inputs_dtype_and_states_float32_or_better(
    form: Form, dtype: torch.dtype, state: bool
) -> None:
    """T10."""
    case = random_case((1, 5, 2, 2, 3), state=state, dtype=dtype)
    o, S = op(form)(case)
    assert o.dtype == dtype
    assert S.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    leaves = [x.requires_grad_() for x in case[:3]]
    grads = torch.autograd.grad(op(form)(case)[0].float().sum(), leaves)
    assert [g.dtype for g in grads] == [dtype] * 3


@forms
def test_scores_beyond_the_range_of_float16_do_not_overflow(form: Form) -> None:
    """T11: inputs of a thousand have scores of a million; the outputs themselves would fit."""
    case = random_case((2, 40, 2, 16, 8), dtype=torch.float16)
    case = case._replace(q=case.q * 1e3, k=case.k * 1e3, v=case.v * 1e-3)
    exact = with_gradients(recurrence, case._replace(state=torch.zeros(2, 2, 16, 8)).double())
    got = with_gradients(op(form), case._replace(state=torch.zeros(2, 2, 16, 8)))
    for name, a, b in zip(NAMES, got, exact, strict=True):
        fits = b.abs().max() < torch.finfo(a.dtype).max
        assert a.isfinite().all() or not fits, name
        if fits:
            torch.testing.assert_close(a.double(), b, rtol=5e-3, atol=5e-3 * b.abs().max().item())


@forms
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(form: Form, autocast: torch.dtype) -> None:
    """T10, T11: the state must not fall to half precision."""
    case = random_case((2, 37, 2, 4, 6), state=True, dtype=torch.float32)
    want = with_gradients(op(form, 8), case)
    got = with_gradients(op(form, 8), case, autocast)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@forms
def test_a_decay_of_e_to_the_minus_twenty_gives_no_nan_in_float32(form: Form) -> None:
    """Exponents are clamped before they are exponentiated: never inf * 0."""
    case = random_case(
        (1, 300, 2, 4, 4), dtype=torch.float32, log_decay=torch.tensor([-20.0, 0.0]), state=True
    )
    exact = with_gradients(recurrence, case.double())
    for a, b in zip(with_gradients(op(form), case), exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def saved_for_backward(T: int, masked: bool) -> tuple[int, int]:
    """Bytes that the chunkwise form keeps, and elements of the largest tensor among them."""
    D_k, D_v, H = 8, 8, 2
    case = random_case((1, T, H, D_k, D_v), dtype=torch.float32)
    layout = Layout.of(1, T, valid=torch.ones(1, T, dtype=torch.bool)) if masked else None
    q, k, v = (x.requires_grad_() for x in case[:3])

    def read() -> None:
        o, _ = retention(q, k, v, case.log_decay, layout=layout, chunk_size=16)
        assert o.requires_grad

    sizes = kept_bytes(read).values()
    return sum(sizes), max(sizes) // 4


@pytest.mark.parametrize("masked", [False, True])
def test_chunkwise_keeps_memory_linear_in_the_sequence_for_backward(masked: bool) -> None:
    """T24: nothing of T x T, nothing of T x D_k x D_v."""
    small, _ = saved_for_backward(512, masked)
    large, largest = saved_for_backward(2048, masked)
    assert large <= 4 * small
    assert largest <= 2048 * 2 * 16  # scores inside chunks, T H C
    assert largest < min(2048 * 2048, 2048 * 2 * 8 * 8)


def test_parallel_is_what_linear_memory_is_measured_against() -> None:
    """The measure of the test above sees a T x T tensor where there is one."""
    case = random_case((1, 256, 1, 4, 4), dtype=torch.float32)
    q, k, v = (x.requires_grad_() for x in case[:3])
    sizes = kept_bytes(lambda: retention(q, k, v, case.log_decay, form="parallel")).values()
    assert max(sizes) == 4 * 256 * 256
