"""Padding and packing never change a row's numbers."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ops.reference import Case, random_case
from retnet.ops import Layout, retention
from retnet.types import Form

FORMS = ("parallel", "recurrent", "chunkwise")
forms = pytest.mark.parametrize("form", FORMS)
chunk_sizes = st.sampled_from([None, 1, 4, 8])


def alone(case: Case, b: int, at: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Retention of some tokens of one row as a sequence of its own."""
    state = None if case.state is None else case.state[b : b + 1]
    q, k, v = (x[b : b + 1, at] for x in (case.q, case.k, case.v))
    return retention(q, k, v, case.log_decay, state, form=form)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def with_garbage(case: Case, valid: Tensor) -> Case:
    return case.with_inputs([x.masked_fill(~valid[..., None, None], 1e12) for x in case[:3]])


@forms
@given(
    lengths=st.lists(st.integers(0, 17), min_size=1, max_size=4),
    state=st.booleans(),
    chunk_size=chunk_sizes,
)
@settings(max_examples=25)
def test_rows_padded_on_the_right_equal_rows_alone(
    form: Form, lengths: list[int], state: bool, chunk_size: int | None
) -> None:
    """T7, T9: padding neither enters the state nor decays it."""
    T = 17
    layout = Layout.from_lengths(torch.tensor(lengths), T)
    assert layout.valid is not None
    case = random_case((len(lengths), T, 2, 3, 4), state=state)
    q, k, v = with_garbage(case, layout.valid)[:3]
    o, S = retention(
        q, k, v, case.log_decay, case.state, layout=layout, form=form, chunk_size=chunk_size
    )
    for b, length in enumerate(lengths):
        assert torch.equal(o[b, length:], torch.zeros_like(o[b, length:]))
        if length:
            o_alone, S_alone = alone(case, b, torch.arange(length), form)
            close(o[b : b + 1, :length], o_alone)
            close(S[b : b + 1], S_alone)


@forms
@given(
    masks=st.lists(st.lists(st.booleans(), min_size=11, max_size=11), min_size=1, max_size=3),
    state=st.booleans(),
    chunk_size=chunk_sizes,
)
@settings(max_examples=40)
def test_padding_anywhere_in_a_row_is_as_if_it_were_not_there(
    form: Form, masks: list[list[bool]], state: bool, chunk_size: int | None
) -> None:
    """T9: on the left, on the right, in gaps."""
    valid = torch.tensor(masks)
    B, T = valid.shape
    case = random_case((B, T, 2, 3, 4), state=state)
    q, k, v = with_garbage(case, valid)[:3]
    layout = Layout.of(B, T, valid=valid)
    o, S = retention(
        q, k, v, case.log_decay, case.state, layout=layout, form=form, chunk_size=chunk_size
    )
    assert torch.equal(o[~valid], torch.zeros_like(o[~valid]))
    for b in range(B):
        at = valid[b].nonzero()[:, 0]
        if len(at):
            o_alone, S_alone = alone(case, b, at, form)
            close(o[b : b + 1, at], o_alone)
            close(S[b : b + 1], S_alone)


@forms
@pytest.mark.parametrize("state", [False, True])
def test_rows_of_only_padding_give_zero_and_the_very_state_they_got(
    form: Form, state: bool
) -> None:
    case = random_case((3, 9, 2, 3, 4), state=state)
    layout = Layout.of(3, 9, valid=torch.zeros(3, 9, dtype=torch.bool))
    leaves = q, k, v = [(x * 1e12).requires_grad_() for x in case[:3]]
    o, S = retention(q, k, v, case.log_decay, case.state, layout=layout, form=form)
    assert torch.equal(o, torch.zeros_like(o))
    assert torch.equal(S, torch.zeros_like(S) if case.state is None else case.state)
    for grad in torch.autograd.grad(o.sum() + S.sum(), leaves):
        assert torch.equal(grad, torch.zeros_like(grad))


@forms
@given(
    cuts=st.lists(st.integers(0, 16), max_size=6),
    state=st.booleans(),
    chunk_size=chunk_sizes,
)
@settings(max_examples=40)
def test_packed_documents_equal_each_document_alone(
    form: Form, cuts: list[int], state: bool, chunk_size: int | None
) -> None:
    """A start forgets what came before: the state given, too, if the row begins with one."""
    T = 17
    case = random_case((1, T, 2, 3, 4), state=state)
    starts = torch.zeros(1, T, dtype=torch.bool)
    starts[0, cuts] = True
    got = case._replace(starts=starts)
    o, S = retention(*got[:5], layout=got.layout(), form=form, chunk_size=chunk_size)
    edges = sorted({0, *cuts, T})
    for begin, end in pairwise(edges):
        kept = case if begin == 0 and not starts[0, 0] else case._replace(state=None)
        o_alone, S_alone = alone(kept, 0, torch.arange(begin, end), form)
        close(o[:, begin:end], o_alone)
        if end == T:
            close(S, S_alone)


@forms
def test_rows_of_a_batch_may_pack_different_documents_and_pad(form: Form) -> None:
    valid = torch.tensor([[1, 1, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0, 1]]).bool()
    starts = torch.tensor([[1, 0, 1, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0, 1]]).bool()
    case = random_case((2, 7, 2, 3, 4), state=True)._replace(valid=valid, starts=starts)
    o, S = retention(*case[:5], layout=case.layout(), form=form)
    # a start at padding is no start, so row 0 has documents [0 1 3] and [4 5]
    fresh = case._replace(state=None)
    for b, documents in enumerate([[[0, 1, 3], [4, 5]], [[1, 2], [3, 4], [6]]]):
        for i, at in enumerate(documents):
            given_state = case if b == 1 and i == 0 else fresh
            o_alone, S_alone = alone(given_state, b, torch.tensor(at), form)
            close(o[b : b + 1, at], o_alone)
            if at == documents[-1]:
                close(S[b : b + 1], S_alone)
