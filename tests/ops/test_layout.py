"""Layout: positions of real tokens in their documents."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retnet.ops import Layout
from unchecked import unchecked


def slow_positions(
    B: int, T: int, position: Tensor | None, valid: Tensor | None, starts: Tensor | None
) -> tuple[list[list[int]], list[int]]:
    """Count token by token; a padded token holds its row's next index."""
    rows, ends = [], []
    for b in range(B):
        n = 0 if position is None else int(position[b])
        row = []
        for t in range(T):
            if valid is not None and not valid[b, t]:
                row.append(n)
                continue
            if starts is not None and starts[b, t]:
                n = 0
            row.append(n)
            n += 1
        rows.append(row)
        ends.append(n)
    return rows, ends


@st.composite
def arguments(draw: st.DrawFn) -> tuple[int, int, Tensor | None, Tensor | None, Tensor | None]:
    B, T = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    bits = st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=B, max_size=B)
    valid, starts = (torch.tensor(draw(bits)) if draw(st.booleans()) else None for _ in range(2))
    counts = st.lists(st.integers(0, 2**40), min_size=B, max_size=B)
    position = torch.tensor(draw(counts)) if draw(st.booleans()) else None
    return B, T, position, valid, starts


@given(arguments())
@settings(max_examples=150)
def test_positions_are_those_of_counting_token_by_token(
    drawn: tuple[int, int, Tensor | None, Tensor | None, Tensor | None],
) -> None:
    B, T, position, valid, starts = drawn
    layout = Layout.of(B, T, position=position, valid=valid, starts=starts)
    positions, ends = slow_positions(B, T, position, valid, starts)
    assert layout.positions.expand(B, T).tolist() == positions
    assert layout.next_position.tolist() == ends
    assert layout.positions.dtype == layout.next_position.dtype == torch.int64


@given(arguments(), st.integers(0, 12))
@settings(max_examples=60)
def test_two_calls_count_on_where_one_would_be(
    drawn: tuple[int, int, Tensor | None, Tensor | None, Tensor | None], at: int
) -> None:
    B, T, position, valid, starts = drawn
    at = at % T
    whole = Layout.of(B, T, position=position, valid=valid, starts=starts)
    parts = []
    for part in (slice(0, at), slice(at, T)):
        if part.start == part.stop:
            continue
        v, s = (None if mask is None else mask[:, part] for mask in (valid, starts))
        layout = Layout.of(B, part.stop - part.start, position=position, valid=v, starts=s)
        position = layout.next_position
        parts.append(layout.positions.expand(B, -1))
    assert torch.equal(torch.cat(parts, 1), whole.positions.expand(B, T))
    assert position is not None
    assert torch.equal(position, whole.next_position)


@given(arguments())
@settings(max_examples=40)
def test_a_start_at_padding_is_no_start(
    drawn: tuple[int, int, Tensor | None, Tensor | None, Tensor | None],
) -> None:
    B, T, position, valid, starts = drawn
    layout = Layout.of(B, T, position=position, valid=valid, starts=starts)
    if starts is not None and valid is not None:
        assert layout.starts is not None
        assert not (layout.starts & ~valid).any()


def test_lengths_are_padding_on_the_right() -> None:
    layout = Layout.from_lengths(torch.tensor([3, 0, 5]), 5)
    assert layout.valid is not None
    assert layout.valid.sum(1).tolist() == [3, 0, 5]
    assert layout.valid[0].tolist() == [True, True, True, False, False]
    assert layout.next_position.tolist() == [3, 0, 5]


def test_what_is_shared_is_built_once_for_each_key() -> None:
    layout = Layout.of(1, 3)
    built = []
    for key in ("a", "b", "a"):
        assert layout.shared(key, lambda key=key: built.append(key) or key) == key
    assert built == ["a", "b"]


def test_two_layouts_share_nothing() -> None:
    first, second = Layout.of(1, 3), Layout.of(1, 3)
    first.shared("a", lambda: 1)
    assert second.shared("a", lambda: 2) == 2


@pytest.mark.parametrize("name", ["valid", "starts"])
def test_a_mask_of_another_shape_is_refused(name: str) -> None:
    mask = torch.ones(2, 4, dtype=torch.bool)
    message = rf"{name} has shape \(2, 4\); it must be \(B, T\) = \(2, 5\), one flag"
    with unchecked(), pytest.raises(ValueError, match=message):
        Layout.of(2, 5, **{name: mask})  # type: ignore[arg-type]


def test_no_tokens_leave_positions_where_they_were() -> None:
    none = torch.zeros(2, 0, dtype=torch.bool)
    layout = Layout.of(2, 0, position=torch.tensor([3, 5]), valid=none, starts=none)
    assert layout.next_position.tolist() == [3, 5]
    assert Layout.of(2, 0, valid=none).next_position.tolist() == [0, 0]
