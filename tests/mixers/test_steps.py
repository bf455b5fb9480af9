"""What branches with opened states promise: steps give what one pass gives, and can be closed."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixers.cases import D, build, cases
from retnet.mixers.branch import Packs, Steps
from retnet.ops import Layout
from retnet.ops.retention.buffered import CAPACITY

STEPPING = [
    pytest.param(name, fields, id=f"{name}{i}")
    for i, (name, fields) in enumerate(cases())
    if isinstance(build(name, fields), Steps)
]
every_stepper = pytest.mark.parametrize(("name", "fields"), STEPPING)
B, BEFORE, STEPS = 2, 5, 2 * CAPACITY + 3


def rows(T: int) -> torch.Tensor:
    torch.manual_seed(6)
    return torch.randn(B, T, D, dtype=torch.float64)


def stepped(module: Any, x: torch.Tensor) -> tuple[list[torch.Tensor], list[Any], torch.Tensor]:
    """Outputs and opened states of single steps after BEFORE tokens, and the output of one pass."""
    want, _ = module(x, None, Layout.of(B, x.shape[1]), "auto")
    _, state = module(x[:, :BEFORE], None, Layout.of(B, BEFORE), "auto")
    opened, outputs, states = module.open_state(state, x.shape[1]), [], []
    for n in range(BEFORE, x.shape[1]):
        layout = Layout.of(B, 1, position=torch.full((B,), n))
        y, opened = module(x[:, n : n + 1], opened, layout, "auto")
        outputs.append(y)
        states.append(opened)
    return outputs, states, want[:, BEFORE:]


@every_stepper
@torch.no_grad()
def test_steps_on_an_opened_state_equal_one_pass(name: str, fields: dict[str, Any]) -> None:
    module: Any = build(name, fields)
    outputs, _, want = stepped(module, rows(BEFORE + STEPS))
    torch.testing.assert_close(torch.cat(outputs, 1), want, rtol=1e-9, atol=1e-9)


@every_stepper
@torch.no_grad()
def test_every_opened_state_closes_to_the_plain_one_even_later(
    name: str, fields: dict[str, Any]
) -> None:
    module: Any = build(name, fields)
    x = rows(BEFORE + STEPS)
    _, states, _ = stepped(module, x)
    for at in (0, 3, CAPACITY - 1, CAPACITY, STEPS - 1):
        T = BEFORE + at + 1
        _, want = module(x[:, :T], None, Layout.of(B, T), "auto")
        got = module.close_state(states[at])
        assert type(got) is type(want)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@every_stepper
@torch.no_grad()
def test_opening_modifies_nothing(name: str, fields: dict[str, Any]) -> None:
    module: Any = build(name, fields)
    x = rows(BEFORE + 3)
    _, state = module(x[:, :BEFORE], None, Layout.of(B, BEFORE), "auto")
    kept = [leaf.clone() for leaf in state]
    opened = module.open_state(state, 3)
    for n in range(BEFORE, BEFORE + 3):
        layout = Layout.of(B, 1, position=torch.full((B,), n))
        _, opened = module(x[:, n : n + 1], opened, layout, "auto")
    for leaf, was in zip(state, kept, strict=True):
        torch.testing.assert_close(leaf, was, rtol=0, atol=0)


@settings(max_examples=10, deadline=None)
@given(positions=st.lists(st.integers(0, 10_000), min_size=B, max_size=B))
@torch.no_grad()
def test_rows_may_stand_at_different_positions(positions: list[int]) -> None:
    name, fields = cases()[0]
    module: Any = build(name, fields)
    x = rows(4)
    _, state = module(x[:, :1], None, Layout.of(B, 1, position=torch.tensor(positions)), "auto")
    opened, plain = module.open_state(state, 3), state
    for n in range(1, 4):
        layout = Layout.of(B, 1, position=torch.tensor(positions) + n)
        got, opened = module(x[:, n : n + 1], opened, layout, "auto")
        want, plain = module(x[:, n : n + 1], plain, layout, "recurrent")
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_learned_initial_state_counts_in_steps_too() -> None:
    module: Any = build("retention", {"num_heads": 2, "initial_state": True})
    assert module.initial_S.abs().max() > 0
    outputs, _, want = stepped(module, rows(BEFORE + CAPACITY + 2))
    torch.testing.assert_close(torch.cat(outputs, 1), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "fields"), cases())
@torch.no_grad()
def test_packed_branches_give_what_they_gave(name: str, fields: dict[str, Any]) -> None:
    module: Any = build(name, fields).float()
    packs: Packs = module
    x = rows(7).float()
    want, _ = module(x, None, Layout.of(B, 7), "auto")
    packs.pack("float32")
    got, _ = module(x, None, Layout.of(B, 7), "auto")
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
