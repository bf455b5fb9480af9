"""What every branch promises the decoder, over the registries: a rival is a line in cases.py."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixers.cases import CHANNEL_CASES, ONE_FORM, TOKEN_CASES, TWO_FORMS, D, build, cases
from retnet.mixers import CHANNEL_MIXERS, MIXERS
from retnet.ops import Layout
from retnet.types import FormChoice

B, T = 3, 9
FORMS = ("auto", "parallel", "recurrent", "chunkwise")

every_branch = pytest.mark.parametrize(
    ("name", "given"), cases(), ids=[f"{name}{i}" for i, (name, _) in enumerate(cases())]
)


def forms_of(name: str, given: dict[str, Any]) -> tuple[str, ...]:
    """Those that differ; auto is one of them, and in `test_branch_gives_the_same_in_every_form`."""
    if name in ONE_FORM or given.get("max_len"):
        return ("auto",)
    return ("recurrent", "chunkwise") if name in TWO_FORMS else FORMS[1:]


every_form = pytest.mark.parametrize(
    ("name", "given", "form"),
    [
        pytest.param(name, given, form, id=f"{name}{i}-{form}")
        for i, (name, given) in enumerate(cases())
        for form in forms_of(name, given)
    ],
)


def inputs() -> Tensor:
    torch.manual_seed(4)
    return torch.randn(B, T, D, dtype=torch.float64)


def run(
    module: nn.Module,
    x: Tensor,
    state: Any = None,
    form: FormChoice = "auto",
    layout: Layout | None = None,
) -> tuple[Tensor, Any]:
    return module(x, state, layout or Layout.of(*x.shape[:2]), form)


def leaves(state: Any) -> list[Tensor]:
    return [] if state is None else list(state)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def as_large(leaf: Tensor, other: Tensor) -> Tensor:
    """A row's leaf with zeros at the end of its axes, as in a batch with rows that read more."""
    missing = [big - small for big, small in zip(other.shape[1:], leaf.shape[1:], strict=True)]
    return F.pad(leaf, [n for size in reversed(missing) for n in (0, size)])


def test_every_registered_branch_has_cases() -> None:
    assert TOKEN_CASES.keys() == MIXERS.keys()
    assert CHANNEL_CASES.keys() == CHANNEL_MIXERS.keys()


@every_form
def test_branch_is_causal(name: str, given: dict[str, Any], form: FormChoice) -> None:
    """T13: a later token changes nothing before it, in any form."""
    module, x = build(name, given), inputs()
    y, _ = run(module, x, form=form)
    changed = [torch.cat([x[:, :t], 1 - 3 * x[:, t:]], 1) for t in range(T)]
    together, _ = run(module, torch.cat(changed), form=form)
    for t, after in enumerate(together.split(B)):
        close(after[:, :t], y[:, :t])


@every_form
def test_branch_split_anywhere_equals_one_pass(
    name: str, given: dict[str, Any], form: FormChoice
) -> None:
    module, x = build(name, given), inputs()
    y, state = run(module, x, form=form)
    for sizes in ((1, 8), (4, 5), (6, 1, 2), (2, 3, 1, 3)):
        pieces, between, at = [], None, 0
        for size in sizes:
            layout = Layout.of(B, size, position=torch.full((B,), at))
            piece, between = run(module, x[:, at : at + size], between, form, layout)
            pieces.append(piece)
            at += size
        close(torch.cat(pieces, 1), y)
        for got, want in zip(leaves(between), leaves(state), strict=True):
            close(got, want)


@every_branch
def test_branch_gives_the_same_in_every_form(name: str, given: dict[str, Any]) -> None:
    module, x = build(name, given), inputs()
    y, state = run(module, x, form="recurrent")
    for form in FORMS:
        other, other_state = run(module, x, form=form)
        close(other, y)
        for got, want in zip(leaves(other_state), leaves(state), strict=True):
            close(got, want)


@every_form
def test_rows_of_a_branch_do_not_know_each_other(
    name: str, given: dict[str, Any], form: FormChoice
) -> None:
    module, x = build(name, given), inputs()
    y, state = run(module, x, form=form)
    for b in range(B):
        alone, state_alone = run(module, x[b : b + 1], form=form)
        close(alone, y[b : b + 1])
        for got, want in zip(leaves(state_alone), leaves(state), strict=True):
            close(got, want[b : b + 1])


@every_form
def test_padding_is_as_if_it_were_not_there(
    name: str, given: dict[str, Any], form: FormChoice
) -> None:
    """T9: left, right, gaps, and a row of nothing else."""
    module, x = build(name, given), inputs()
    valid = torch.tensor(
        [[0, 0, 1, 1, 1, 1, 1, 1, 0], [1, 0, 1, 1, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0]]
    ).bool()
    x = torch.where(valid[..., None], x, 1e3)
    y, state = run(module, x, form=form, layout=Layout.of(B, T, valid=valid))
    assert y.isfinite().all()
    for b in range(B - 1):
        alone, state_alone = run(module, x[b : b + 1, valid[b]], form=form)
        close(y[b : b + 1, valid[b]], alone)
        for got, want in zip(leaves(state), leaves(state_alone), strict=True):
            close(got[b : b + 1], as_large(want, got))
    for leaf in leaves(state):
        assert torch.equal(leaf[-1], torch.zeros_like(leaf[-1]))


@every_form
def test_a_document_start_forgets_what_came_before(
    name: str, given: dict[str, Any], form: FormChoice
) -> None:
    module, x = build(name, given), inputs()
    starts = torch.zeros(B, T, dtype=torch.bool)
    starts[:, 4] = True
    y, state = run(module, x, form=form, layout=Layout.of(B, T, starts=starts))
    close(y[:, :4], run(module, x[:, :4], form=form)[0])
    second, state_alone = run(module, x[:, 4:], form=form)
    close(y[:, 4:], second)
    for got, want in zip(leaves(state), leaves(state_alone), strict=True):
        close(got, want)


@every_form
def test_state_is_a_named_tuple_with_the_batch_first_and_is_not_written_to(
    name: str, given: dict[str, Any], form: FormChoice
) -> None:
    """T8."""
    module, x = build(name, given), inputs()
    _, state = run(module, x, form=form)
    if name in CHANNEL_CASES and state is None:
        return
    assert hasattr(state, "_fields")
    assert all(isinstance(leaf, Tensor) and len(leaf) == B for leaf in state)
    kept = [leaf.clone() for leaf in state]
    layout = Layout.of(B, T, position=torch.full((B,), T))
    y, _ = run(module, x.requires_grad_(), state, form, layout)
    y.sum().backward()
    for leaf, before in zip(state, kept, strict=True):
        assert torch.equal(leaf, before)


@every_branch
def test_state_is_as_large_as_the_branch_says(name: str, given: dict[str, Any]) -> None:
    module, x = build(name, given), inputs()
    state = None
    for t in range(T):
        layout = Layout.of(B, 1, position=torch.full((B,), t))
        _, state = run(module, x[:, t : t + 1], state, layout=layout)
        held = sum(leaf[0].numel() for leaf in leaves(state))
        assert held == module.state_size(t + 1)  # type: ignore[operator]
        _, whole = run(module, x[:, : t + 1])
        assert [leaf.shape for leaf in leaves(whole)] == [leaf.shape for leaf in leaves(state)]


@every_form
def test_gradient_reaches_every_weight_and_earlier_calls_through_the_state(
    name: str, given: dict[str, Any], form: FormChoice
) -> None:
    module, x = build(name, given), inputs().requires_grad_()
    y, _ = run(module, x, form=form)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    assert x.grad is not None
    whole = {key: p.grad for key, p in module.named_parameters()} | {"x": x.grad}
    for key, grad in whole.items():
        assert grad is not None, key
        assert grad.isfinite().all(), key
        assert grad.abs().max() > 0, key
    module.zero_grad()
    x.grad = None
    first, state = run(module, x[:, :5], form=form)
    layout = Layout.of(B, T - 5, position=torch.full((B,), 5))
    second, _ = run(module, x[:, 5:], state, form, layout)
    (torch.cat([first, second], 1) * weights).sum().backward()
    halves = {key: p.grad for key, p in module.named_parameters()} | {"x": x.grad}
    for key, grad in whole.items():
        assert grad is not None
        assert halves[key] is not None
        close(halves[key], grad)  # type: ignore[arg-type]


@every_branch
def test_gain_scales_the_output_and_a_second_draw_forgets_the_first(
    name: str, given: dict[str, Any]
) -> None:
    module, x = build(name, given), inputs()
    sizes = []
    for gain in (1.0, 1e-3):
        torch.manual_seed(5)
        module.reset_parameters(gain)  # type: ignore[operator]
        y, _ = run(module, x)
        sizes.append((y - y.mean((0, 1))).std().item())  # less a bias, which has no gain
    assert sizes[1] <= 0.1 * sizes[0]  # both are zero where the output begins at zero
