"""Rows spread over ranks: what each is told, and that all together compute what one would."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.on_ranks import CHECKS
from ops.reference import Case, random_case, recurrence
from processes import run_together
from retnet.ops import Layout, SequenceRanks
from retnet.ops.retention.torch_backend import own_state
from retnet.ops.sequence import Spread, through_slices


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_together_are_one_process(num_ranks: int, tmp_path: Path) -> None:
    run_together(num_ranks, CHECKS, tmp_path)


@st.composite
def cut_rows(draw: st.DrawFn) -> tuple[Case, list[int]]:
    """Rows with any padding and documents, and where they are cut."""
    T = draw(st.integers(1, 14))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    decays = draw(st.lists(st.sampled_from([0.0, -1e-3]) | st.floats(-9, 0), min_size=1))
    case = random_case(
        (2, T, len(decays), 2, 3),
        state=True,
        log_decay=torch.tensor(decays, dtype=torch.float64),
        seed=draw(st.integers(0, 9)),
    )
    case = case._replace(
        valid=torch.rand(2, T, generator=rng) < draw(st.sampled_from([0.0, 0.5, 1.0])),
        starts=torch.rand(2, T, generator=rng) < draw(st.sampled_from([0.0, 0.1, 0.5])),
    )
    return case, sorted({0, T, *draw(st.lists(st.integers(0, T), max_size=5))})


@given(drawn=cut_rows())
@settings(max_examples=50)
def test_slices_that_each_start_from_nothing_fold_into_the_recurrence(
    drawn: tuple[Case, list[int]],
) -> None:
    """The rule of the exchange, without one: any cuts, in any document, next to any padding."""
    case, cuts = drawn
    own, counts, fresh = [], [], []
    for begin, end in pairwise(cuts):
        valid, starts = (m[:, begin:end] for m in (case.valid, case.starts) if m is not None)
        here = Layout.of(2, end - begin, valid=valid, starts=starts)
        own.append(own_state(case.k[:, begin:end], case.v[:, begin:end], case.log_decay, here))
        counts.append(here.next_position)
        assert here.starts is not None
        fresh.append(here.starts.any(1))
    assert case.state is not None
    for rank, begin in enumerate(cuts[:-1]):
        spread = Spread(
            SequenceRanks(None, rank, len(own)), torch.stack(counts), torch.stack(fresh)
        )
        carry = spread.carry(case.log_decay)[..., None, None]
        entering, leaving = through_slices(case.state, carry, own, rank)
        before = case._replace(
            **{
                name: None if (x := getattr(case, name)) is None else x[:, :begin]
                for name in ("q", "k", "v", "valid", "starts")
            }
        )
        want = recurrence(before)[1] if begin else case.state
        torch.testing.assert_close(entering, want, rtol=0, atol=1e-12)
        torch.testing.assert_close(leaving, recurrence(case)[1], rtol=0, atol=1e-12)
        whole = Layout.of(
            2, cuts[-1], position=torch.tensor([5, 0]), valid=case.valid, starts=case.starts
        )
        first, after = spread.positions(torch.tensor([5, 0]))
        assert torch.equal(after, whole.next_position)
        assert whole.starts is not None
        if not whole.starts[:, begin].any():
            assert torch.equal(first, whole.positions.expand(2, -1)[:, begin])


def test_parts_cover_rows_in_order_and_differ_by_one_token_at_most() -> None:
    rows = torch.arange(22).reshape(2, 11)
    parts = [SequenceRanks(None, rank, 4).part(rows) for rank in range(4)]
    assert torch.equal(torch.cat(parts, 1), rows)
    assert sorted(part.shape[1] for part in parts) == [2, 3, 3, 3]


def test_fewer_tokens_than_ranks_are_refused() -> None:
    message = "rows of 2 tokens cannot be spread over 3 ranks.*use longer rows or fewer ranks"
    with pytest.raises(ValueError, match=message):
        SequenceRanks(None, 1, 3).part(torch.zeros(1, 2))


def test_ranks_without_a_process_group_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no process group; start the program with torch"):
        SequenceRanks.of()
