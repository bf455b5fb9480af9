"""Cutting rows into documents loses nothing, mixes nothing and wastes little."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from retnet.ops import Layout
from retnet.ops.documents import by_document, documents
from retnet.ops.sequence import SequenceRanks, Spread

B, T = 4, 23


class Sum(NamedTuple):
    """What the test's core remembers."""

    total: Tensor


def running_sum(x: Tensor, state: Sum | None, length: Tensor | None) -> tuple[Tensor, Sum]:
    """The simplest core: all tokens so far."""
    before = x.new_zeros(len(x), x.shape[2]) if state is None else state.total
    y = before[:, None] + x.cumsum(1)
    if length is None:
        return y, Sum(y[:, -1])
    kept = torch.arange(x.shape[1]) < length[:, None]
    return y, Sum(before + (x * kept[..., None]).sum(1))


def by_definition(x: Tensor, state: Sum | None, layout: Layout) -> tuple[Tensor, Tensor]:
    y = torch.zeros_like(x)
    total = torch.zeros(B, x.shape[2], dtype=x.dtype) if state is None else state.total.clone()
    for b in range(B):
        for t in range(T):
            if layout.starts is not None and layout.starts[b, t]:
                total[b] = 0
            if layout.valid is None or layout.valid[b, t]:
                total[b] = total[b] + x[b, t]
                y[b, t] = total[b]
    return y, total


def masks(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(B, T, generator=generator) < (0.2, 0.8)[seed % 2]
    valid[seed % B] = False  # a row that reads nothing
    return valid, torch.rand(B, T, generator=generator) < (0.1, 0.5)[seed % 2]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("which", ["valid", "starts", "both"])
@pytest.mark.parametrize("going_on", [False, True])
def test_documents_are_as_if_each_were_alone(seed: int, which: str, going_on: bool) -> None:
    valid, starts = masks(seed)
    layout = Layout.of(
        B,
        T,
        valid=None if which == "starts" else valid,
        starts=None if which == "valid" else starts,
    )
    x = torch.randn(B, T, 2, dtype=torch.float64)
    state = Sum(torch.randn(B, 2, dtype=torch.float64)) if going_on else None
    want, total = by_definition(x, state, layout)
    if layout.valid is not None:
        x = torch.where(layout.valid[..., None], x, torch.nan)  # what stands at padding
    y, after = by_document(running_sum, x, state, layout)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(after.total, total)


@pytest.mark.parametrize("seed", range(6))
def test_no_group_has_more_than_twice_the_tokens_that_are_used(seed: int) -> None:
    valid, starts = masks(seed)
    groups = documents(Layout.of(B, T, valid=valid, starts=starts), B, T)
    tokens = torch.cat([group.token[group.used] for group in groups])
    assert sorted(tokens.tolist()) == valid.flatten().nonzero()[:, 0].tolist()
    assert sorted(torch.cat([g.row[g.left] for g in groups]).tolist()) == list(range(B))
    for group in groups:
        assert torch.equal(group.used.sum(1), group.length)
        assert group.used.numel() <= max(2 * int(group.length.sum()), len(group.length))


def test_without_masks_the_core_runs_on_the_rows_themselves() -> None:
    x = torch.randn(B, T, 2)
    seen = []

    def core(x: Tensor, state: Sum | None, length: Tensor | None) -> tuple[Tensor, Sum]:
        seen.append((x, length))
        return running_sum(x, state, length)

    by_document(core, x, None, Layout.of(B, T))
    assert len(seen) == 1
    assert seen[0][0] is x
    assert seen[0][1] is None


def test_gradients_reach_the_tokens_that_are_there_and_the_state_where_it_enters() -> None:
    valid, starts = torch.ones(B, T).bool(), torch.zeros(B, T).bool()
    valid[0, :9], valid[1] = False, False
    starts[2, 0], starts[3, 5] = True, True
    x = torch.ones(B, T, 1, dtype=torch.float64, requires_grad=True)
    total = torch.ones(B, 1, dtype=torch.float64, requires_grad=True)
    y, after = by_document(running_sum, x, Sum(total), Layout.of(B, T, valid=valid, starts=starts))
    (y.sum() + 100 * after.total.sum()).backward()
    assert x.grad is not None
    assert total.grad is not None
    assert torch.equal(x.grad[..., 0] != 0, valid)
    assert total.grad[:, 0].tolist() == [14 + 100, 100, 0, 5]


def test_rows_spread_over_ranks_are_refused() -> None:
    counts = torch.full((2, B), T)
    spread = Spread(SequenceRanks(None, 0, 2), counts, counts > T)
    layout = replace(Layout.of(B, T), spread=spread)
    with pytest.raises(ValueError, match="must not be spread over several"):
        by_document(running_sum, torch.zeros(B, T, 2), None, layout)
