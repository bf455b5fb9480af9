"""Padding, packing and batching never change a row's numbers."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.small import FORMS, close, config, decoder, leaves, tokens
from retnet.model import Decoder, DecoderState, concat_rows, select_rows
from retnet.types import Form

forms = pytest.mark.parametrize("form", FORMS)
LENGTHS = (9, 1, 5, 33, 40)
T = 40


def mask(kind: str) -> Tensor:
    """(rows, T), each row with its own number of tokens at the places that `kind` says."""
    valid = torch.zeros(len(LENGTHS), T, dtype=torch.bool)
    rng = torch.Generator().manual_seed(2)
    for row, length in enumerate(LENGTHS):
        if kind == "right":
            valid[row, :length] = True
        elif kind == "left":
            valid[row, T - length :] = True
        elif kind == "both":
            valid[row, (T - length) // 2 : (T - length) // 2 + length] = True
        else:
            valid[row, torch.randperm(T, generator=rng)[:length]] = True
    return valid


kinds = pytest.mark.parametrize("kind", ["right", "left", "both", "gaps"])


def padded(kind: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Tokens with arbitrary ids at padding, the mask, and each row's own tokens."""
    text, valid = tokens(len(LENGTHS), T), mask(kind)
    return text, valid, [text[row, valid[row]][None] for row in range(len(LENGTHS))]


def assert_rows_equal(
    got: tuple[Tensor, DecoderState], valid: Tensor, alone: Iterator[tuple[Tensor, DecoderState]]
) -> None:
    logits, state = got
    for row, (logits_alone, state_alone) in enumerate(alone):
        close(logits[row, valid[row]], logits_alone[0])
        for a, b in zip(leaves(select_rows(state, [row])), leaves(state_alone), strict=True):
            close(a, b)


@forms
@kinds
def test_a_padded_batch_equals_its_rows_alone(form: Form, kind: str) -> None:
    """T9: left, right and mixed padding in every form; the ids at padding do not matter."""
    model = decoder()
    text, valid, rows = padded(kind)
    with torch.no_grad():
        got = model(text, valid=valid, form=form)
        assert_rows_equal(got, valid, (model(row, form=form) for row in rows))
        assert got[0].isfinite().all()
        other = model(torch.where(valid, text, 0), valid=valid, form=form)
    close(got[0][valid], other[0][valid])
    assert got[1].position.tolist() == list(LENGTHS)


@forms
@kinds
def test_loss_and_gradients_of_a_padded_batch_are_the_sums_of_its_rows(
    form: Form, kind: str
) -> None:
    """T9: padding has no loss and moves no weight."""
    model = decoder()
    text, valid, rows = padded(kind)

    def nats(logits: Tensor, text: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), text.flatten(), reduction="sum")

    model.zero_grad()
    logits, _ = model(text, valid=valid, form=form)
    loss = nats(logits[valid], text[valid])
    loss.backward()
    got = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    want_loss = sum(nats(model(row, form=form)[0][0], row[0]) for row in rows)
    assert isinstance(want_loss, Tensor)
    want_loss.backward()
    close(loss, want_loss)
    for a, b in zip(got, model.parameters(), strict=True):
        assert b.grad is not None
        close(a, b.grad)


@forms
@kinds
def test_a_padded_prompt_continues_as_each_row_alone_would(form: Form, kind: str) -> None:
    """T9, T7: the state after padding is the state before it."""
    model, more = decoder(), tokens(len(LENGTHS), 6, seed=5)
    text, valid, rows = padded(kind)
    with torch.no_grad():
        _, state = model(text, valid=valid, form=form)
        got, _ = model(more, state, form="recurrent")
        for row, prompt in enumerate(rows):
            want, _ = model(torch.cat([prompt, more[row : row + 1]], 1))
            close(got[row], want[0, -6:])


@forms
def test_padding_may_follow_a_state(form: Form) -> None:
    """Rows of a batch that are at different places, with different amounts to read."""
    model = decoder()
    text, valid, _ = padded("right")
    with torch.no_grad():
        states = [model(tokens(1, n, seed=n))[1] for n in (3, 7, 1, 12, 2)]
        got = model(text, concat_rows(states), valid=valid, form=form)
        alone = (model(text[row : row + 1, valid[row]], states[row], form=form) for row in range(5))
        assert_rows_equal(got, valid, alone)


@forms
def test_a_row_of_only_padding_keeps_its_state_and_gives_finite_logits(form: Form) -> None:
    model, text = decoder(), tokens(2, 5)
    valid = torch.tensor([[True] * 5, [False] * 5])
    with torch.no_grad():
        _, state = model(text)
        logits, after = model(text, state, valid=valid, form=form)
        fresh, empty = model(text, valid=valid, form=form)
    for leaf, before in zip(leaves(after), leaves(state), strict=True):
        assert torch.equal(leaf[1], before[1])
    assert logits.isfinite().all()
    assert fresh.isfinite().all()
    assert all(not leaf[1].any() for leaf in leaves(empty))


def test_padding_is_harmless_without_epsilon_too() -> None:
    """T9: 0 / sqrt(0) would be NaN; padding may not turn a batch's gradients into it."""
    model = decoder(config({"norm_eps": 1e-30}), torch.float32)
    text, valid, _ = padded("left")
    logits, _ = model(text, valid=valid)
    logits[valid].sum().backward()
    assert logits[valid].isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def documents(model: Decoder, text: Tensor, cuts: list[int], form: Form) -> Iterator[Tensor]:
    edges = sorted({0, *cuts, text.shape[1]})
    for begin, end in pairwise(edges):
        yield model(text[:, begin:end], form=form)[0]


@forms
@pytest.mark.parametrize("cuts", [[0], [0, 1], [0, 17], [0, 31, 32, 33], [5, 39]], ids=str)
def test_packed_documents_equal_each_document_alone(form: Form, cuts: list[int]) -> None:
    model, text = decoder(), tokens(1, T)
    starts = torch.zeros(1, T, dtype=torch.bool)
    starts[0, cuts] = True
    with torch.no_grad():
        got, state = model(text, starts=starts, form=form)
        close(got, torch.cat(list(documents(model, text, cuts, form)), 1))
    assert state.position.tolist() == [T - cuts[-1]]


@forms
def test_a_start_at_the_first_token_forgets_the_state_that_was_given(form: Form) -> None:
    """Streams are scored in segments whose first token may open a document."""
    model, text = decoder(), tokens(3, 12)
    starts = torch.zeros(3, 12, dtype=torch.bool)
    starts[0, 0] = starts[1, 4] = True
    with torch.no_grad():
        _, state = model(tokens(3, 8, seed=9))
        got, end = model(text, state, starts=starts, form=form)
        close(got[0], model(text[:1])[0][0])
        close(got[1, :4], model(text[1:2, :4], select_rows(state, [1]))[0][0])
        close(got[1, 4:], model(text[1:2, 4:])[0][0])
        close(got[2], model(text[2:], select_rows(state, [2]))[0][0])
    assert end.position.tolist() == [12, 8, 20]


def test_every_row_may_be_padded_and_packed_in_its_own_way() -> None:
    model, text = decoder(), tokens(4, 25)
    rng = torch.Generator().manual_seed(3)
    valid = torch.rand(4, 25, generator=rng) < 0.7
    starts = torch.rand(4, 25, generator=rng) < 0.2
    with torch.no_grad():
        for form in FORMS:
            got, _ = model(text, valid=valid, starts=starts, form=form)
            for row in range(4):
                at = valid[row].nonzero()[:, 0]
                kept = text[row : row + 1, at]
                want, _ = model(kept, starts=starts[row : row + 1, at], form="recurrent")
                close(got[row, at], want[0])
