"""FFT, scan and loop are one system; its step sizes mean what they say."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from retnet.ops.diagonal_ssm import (
    DiagonalSSM,
    bilinear,
    diagonal_ssm,
    impulse_response,
    ssm_step,
    step_tables,
    zero_order_hold,
)
from retnet.types import Form
from support import assert_within_budget

B, H, E, N = 2, 3, 2, 4
FORMS: tuple[Form, ...] = ("parallel", "chunkwise", "recurrent")
Discretise = Callable[[Tensor, Tensor, Tensor, Tensor], DiagonalSSM]
both_rules = pytest.mark.parametrize("rule", [zero_order_hold, bilinear])


def continuous(N: int = N) -> tuple[Tensor, Tensor, Tensor]:
    """A, B, C of S4D-Lin systems, B and C drawn."""
    generator = torch.Generator().manual_seed(1)
    A = torch.complex(torch.full((H, N), -0.5), math.pi * torch.arange(N).expand(H, N).float())
    b, c = (torch.randn(H, N, 2, generator=generator).double() for _ in range(2))
    return A.to(torch.complex128), torch.view_as_complex(b), torch.view_as_complex(c)


def system(rule: Discretise = zero_order_hold) -> DiagonalSSM:
    return rule(*continuous(), torch.tensor([0.01, 0.1, 0.7]).double()[:, None])


def signal(T: int, seed: int = 0) -> Tensor:
    return torch.randn(B, T, H, E, generator=torch.Generator().manual_seed(seed)).double()


def loop(u: Tensor, ssm: DiagonalSSM, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition."""
    h = torch.zeros(B, H, E, N, dtype=torch.complex128) if h is None else torch.view_as_complex(h)
    outputs = []
    for t in range(u.shape[1]):
        h = ssm.log_a.exp()[:, None] * h + ssm.b[:, None] * u[:, t, ..., None]
        outputs.append(2 * (ssm.c[:, None] * h).sum(-1).real)
    return torch.stack(outputs, 1), torch.view_as_real(h)


@both_rules
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", [1, 2, 3, 8, 15, 16, 17, 70])
@pytest.mark.parametrize("entered", [False, True])
def test_every_form_is_the_loop(rule: Discretise, form: Form, T: int, entered: bool) -> None:
    ssm, u = system(rule), signal(T)
    state = torch.randn(B, H, E, N, 2).double() if entered else None
    want, after = loop(u, ssm, state)
    y, h = diagonal_ssm(u, ssm, state, form=form)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(h, after, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_may_end_before_the_last_slot(form: Form) -> None:
    ssm, u, state = system(), signal(9), torch.randn(B, H, E, N, 2).double()
    length = torch.tensor([0, 5])
    y, h = diagonal_ssm(u, ssm, state, length=length, form=form)
    for b, tokens in enumerate(length.tolist()):
        want, after = loop(u[:, :tokens], ssm, state) if tokens else (u[:, :0], state)
        torch.testing.assert_close(y[b, :tokens], want[b])
        torch.testing.assert_close(h[b], after[b])


@both_rules
def test_the_impulse_response_is_the_output_for_an_impulse(rule: Discretise) -> None:
    u = torch.zeros(B, 40, H, E).double()
    u[:, 0] = 1
    y, _ = loop(u, system(rule))
    torch.testing.assert_close(impulse_response(system(rule), 40), y[0, :, :, 0].mT)


@pytest.mark.parametrize("form", FORMS)
def test_float32_loses_no_more_than_the_loop_does(form: Form) -> None:
    T = 300
    exact, _ = loop(signal(T), system())
    single = DiagonalSSM(*(x.to(torch.complex64) for x in system()))
    y, h = diagonal_ssm(signal(T).float(), single, form=form)
    plain, _ = diagonal_ssm(signal(T).float(), single, form="recurrent")
    assert y.dtype == h.dtype == torch.float32
    assert_within_budget(y, plain, exact, 6.0)


@both_rules
def test_halving_the_step_and_doubling_the_rate_agree_to_first_order(rule: Discretise) -> None:
    """One signal, sampled twice as often."""
    errors = []
    for samples in (100, 200, 400):
        outputs = []
        for rate in (1, 2):
            n = samples * rate
            times = torch.arange(n).double() / n
            u = torch.sin(7 * times)[None, :, None, None].expand(1, -1, H, 1)
            ssm = rule(*continuous(), torch.tensor(4 / n).double())
            outputs.append(diagonal_ssm(u, ssm)[0][:, rate - 1 :: rate])
        errors.append((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())
    assert errors[0] < 0.2
    for coarse, fine in pairwise(errors):
        assert 1.6 < coarse / fine < 2.4


def test_gradients_of_the_forms_agree() -> None:
    state = torch.randn(B, H, E, N, 2).double()
    weights, weights_h = signal(9, seed=2), torch.randn(B, H, E, N, 2).double()
    grads = []
    for form in FORMS:
        leaves = [x.clone().requires_grad_() for x in (signal(9), state, *system())]
        u, h, *ssm = leaves
        y, after = diagonal_ssm(u, DiagonalSSM(*ssm), h, form=form)
        ((y * weights).sum() + (after * weights_h).sum()).backward()
        grads.append([leaf.grad for leaf in leaves])
    for other in grads[:-1]:
        torch.testing.assert_close(other, grads[-1])


@both_rules
@torch.no_grad()
def test_a_step_by_tables_is_the_loop(rule: Discretise) -> None:
    ssm, u, state = system(rule), signal(1), torch.randn(B, H, E, N, 2).double()
    want, after = loop(u, ssm, state)
    y, h = ssm_step(u, step_tables(ssm), state)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(h, after)
