"""Every form of retention computes the recurrence: outputs, states and gradients."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ops.reference import Case, random_case, recurrence
from retnet.ops import Layout, retention
from retnet.types import Form

FORMS = ("parallel", "recurrent", "chunkwise")
forms = pytest.mark.parametrize("form", FORMS)


def run(case: Case, form: Form, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    q, k, v, log_decay, state = case[:5]
    return retention(
        q, k, v, log_decay, state, layout=case.layout(), form=form, chunk_size=chunk_size
    )


def with_gradients(function: Any, case: Case) -> list[Tensor]:
    """Outputs, final state, and the gradients of q, k, v and the state under random weights."""
    leaves = [x.detach().clone().requires_grad_() for x in (*case[:3], case.state) if x is not None]
    state = leaves[3] if case.state is not None else None
    o, S = function(case.with_inputs(leaves[:3])._replace(state=state))
    rng = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=rng, dtype=x.dtype) for x in (o, S)]
    total = (o * weights[0]).sum() + (S * weights[1]).sum()
    total = total + 0 * sum(leaf.sum() for leaf in leaves)  # the reference skips padding
    return [o.detach(), S.detach(), *torch.autograd.grad(total, leaves)]


def assert_equal(got: list[Tensor], want: list[Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * max(1.0, b.abs().max().item()))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Case, int | None]:
    """Any sizes, decays, state, padding and document starts, and any chunk size."""
    C = draw(st.sampled_from([None, 1, 2, 3, 4, 7, 8, 16, 64]))
    around = [T for T in ((C or 32) - 1, C or 32, (C or 32) + 1, 1) if 0 < T <= 33]
    T = draw(st.sampled_from(around) | st.integers(1, 25))
    H = draw(st.integers(1, 3) | st.just(64)) if T < 9 else draw(st.integers(1, 3))
    B, D_k, D_v = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    decays = st.sampled_from([0.0, -20.0, -1e-9, -1e-3]) | st.floats(-20, 0)
    log_decay = torch.tensor(draw(st.lists(decays, min_size=H, max_size=H)), dtype=torch.float64)
    case = random_case(
        (B, T, H, D_k, D_v),
        state=draw(st.booleans()),
        log_decay=log_decay,
        seed=draw(st.integers(0, 9)),
    )
    rng = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if draw(st.booleans()):  # with garbage where there is padding
        valid = torch.rand(B, T, generator=rng) < draw(st.sampled_from([0.0, 0.3, 0.7, 0.95]))
        garbage = torch.where(valid, 1.0, 1e9)[..., None, None]
        case = case._replace(q=case.q * garbage, k=case.k * garbage, v=case.v * garbage)
        case = case._replace(valid=valid)
    if draw(st.booleans()):
        case = case._replace(starts=torch.rand(B, T, generator=rng) < draw(st.floats(0, 0.5)))
    return case, C


@forms
@given(drawn=cases())
@settings(max_examples=60)
@example(drawn=(random_case((2, 64, 2, 4, 3), state=True), None))  # two whole chunks of 32
@example(drawn=(random_case((1, 3, 1, 2, 2)), 1000))
def test_every_form_equals_the_recurrence_in_outputs_states_and_gradients(
    form: Form, drawn: tuple[Case, int | None]
) -> None:
    """T3, T7, T14: any length and chunk, decay from none to e^-20, padding and documents."""
    case, chunk_size = drawn
    got = with_gradients(lambda c: run(c, form, chunk_size), case)
    assert_equal(got, with_gradients(recurrence, case))


@forms
@given(drawn=cases(), at=st.integers(0, 100))
@settings(max_examples=30)
def test_splitting_anywhere_and_handing_the_state_over_changes_nothing(
    form: Form, drawn: tuple[Case, int | None], at: int
) -> None:
    case, chunk_size = drawn
    T = case.q.shape[1]
    at = at % T
    o, S = run(case, form, chunk_size)
    state, parts = case.state, []
    for part in (slice(0, at), slice(at, T)):
        if part.start == part.stop:
            continue
        valid, starts = (None if m is None else m[:, part] for m in (case.valid, case.starts))
        piece = case.with_inputs([x[:, part] for x in case[:3]])
        piece = piece._replace(state=state, valid=valid, starts=starts)
        o_part, state = run(piece, form, chunk_size)
        parts.append(o_part)
    assert state is not None
    assert_equal([torch.cat(parts, 1), state], [o, S])


@forms
@given(drawn=cases(), at=st.integers(0, 100))
@settings(max_examples=30)
def test_no_output_depends_on_a_later_token(
    form: Form, drawn: tuple[Case, int | None], at: int
) -> None:
    """T13: causality, also where nothing decays."""
    case, chunk_size = drawn
    at = at % case.q.shape[1]
    changed = [x.clone() for x in case[:3]]
    for x in changed:
        x[:, at:] = -x[:, at:] + 1
    before, _ = run(case, form, chunk_size)
    after, _ = run(case.with_inputs(changed), form, chunk_size)
    torch.testing.assert_close(after[:, :at], before[:, :at], rtol=0, atol=0)


@forms
@given(drawn=cases())
@settings(max_examples=30)
def test_rows_do_not_know_each_other(form: Form, drawn: tuple[Case, int | None]) -> None:
    case, chunk_size = drawn
    o, S = run(case, form, chunk_size)
    for b in range(len(o)):
        state, valid, starts = (None if x is None else x[b : b + 1] for x in case[4:])
        row = case.with_inputs([x[b : b + 1] for x in case[:3]])
        row = row._replace(state=state, valid=valid, starts=starts)
        assert_equal(list(run(row, form, chunk_size)), [o[b : b + 1], S[b : b + 1]])


@given(drawn=cases(), first=st.sampled_from(FORMS), second=st.sampled_from(FORMS))
@settings(max_examples=30)
def test_any_form_continues_from_the_state_of_any_other(
    drawn: tuple[Case, int | None], first: Form, second: Form
) -> None:
    case, chunk_size = drawn
    _, S = run(case, "recurrent")
    _, state = run(case, first, chunk_size)
    again = case._replace(state=state)
    assert_equal(
        list(run(again, second, chunk_size)), list(run(case._replace(state=S), "recurrent"))
    )


@forms
def test_two_calls_with_one_state_give_the_same_and_leave_it_alone(form: Form) -> None:
    case = random_case((2, 9, 2, 4, 3), state=True)
    assert case.state is not None
    kept = [x.clone() for x in case[:5] if x is not None]
    first, second = run(case, form, 4), run(case, form, 4)
    assert_equal(list(first), list(second))
    for x, y in zip(case[:5], kept, strict=True):
        assert x is not None
        assert torch.equal(x, y)


@forms
@pytest.mark.parametrize("T", [1, 5])
def test_gradients_agree_with_finite_differences(form: Form, T: int) -> None:
    case = random_case((2, T, 2, 2, 3), state=True)
    valid = torch.ones(2, T, dtype=torch.bool)
    valid[1, T // 2 :] = False
    layout = Layout.of(2, T, valid=valid)
    leaves = [x.requires_grad_() for x in (case.q, case.k, case.v, case.state) if x is not None]
    chunk_size = 2 if form == "chunkwise" else None

    def op(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return retention(
            q, k, v, case.log_decay, state, layout=layout, form=form, chunk_size=chunk_size
        )

    assert torch.autograd.gradcheck(op, leaves)


@forms
def test_gradient_of_one_input_alone_is_the_same(form: Form) -> None:
    case = random_case((1, 9, 2, 2, 3), state=True)
    want = with_gradients(recurrence, case)
    for i, name in enumerate(("q", "k", "v", "state")):
        leaf = getattr(case, name).clone().requires_grad_()
        o, S = run(case._replace(**{name: leaf}), form, 4)
        rng = torch.Generator().manual_seed(1)
        weights = [torch.randn(x.shape, generator=rng, dtype=x.dtype) for x in (o, S)]
        total = (o * weights[0]).sum() + (S * weights[1]).sum()
        torch.testing.assert_close(torch.autograd.grad(total, leaf)[0], want[2 + i])


@forms
def test_gradient_reaches_the_inputs_through_the_final_state_alone(form: Form) -> None:
    """Truncated backpropagation may use the state and drop the outputs, or the other way."""
    case = random_case((1, 9, 2, 2, 3), state=True)
    for pick in (0, 1):
        got, want = (
            torch.autograd.grad(function(case)[pick].square().sum(), leaves, allow_unused=True)
            for function, leaves in (
                (lambda c: run(c, form, 4), [case.k.requires_grad_(), case.v.requires_grad_()]),
                (recurrence, [case.k, case.v]),
            )
        )
        assert_equal(list(got), list(want))


@forms
def test_strided_inputs_give_the_same(form: Form) -> None:
    case = random_case((2, 9, 3, 4, 6), state=True)
    want = run(case, form, 4)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in case[:3]]
    got = run(case.with_inputs(strided), form, 4)
    assert_equal(list(got), list(want))


@forms
def test_many_heads_with_the_longest_memories_decay_at_all(form: Form) -> None:
    """T14: rounded to float32, the decays of heads 20 and up are exactly 1."""
    H = 32
    log_decay = torch.log1p(-(2.0 ** (-5 - torch.arange(H, dtype=torch.float64))))
    case = random_case((1, 40, H, 2, 2), log_decay=log_decay)
    assert_equal(list(run(case, form, 16)), list(recurrence(case)))
    none = run(case._replace(log_decay=torch.zeros(H, dtype=torch.float64)), form, 16)[1]
    assert ((run(case, form, 16)[1] - none).abs().amax((0, 2, 3)) > 0).all()
