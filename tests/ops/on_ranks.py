"""Checks of retention over rows that are spread over ranks; `test_sequence.py` runs them."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from ops.reference import Case, random_case
from retnet.ops import Layout, SequenceRanks, retention
from retnet.types import Form
from support import assert_within_budget

FORMS: tuple[Form, ...] = ("parallel", "recurrent", "chunkwise")


def summed(share: Tensor) -> Tensor:
    """What all ranks' shares add up to."""
    total = share.clone()
    dist.all_reduce(total)
    return total


def cases(ranks: SequenceRanks) -> Iterator[tuple[Case, Tensor | None]]:
    """Rows of any length with and without a state, padding, documents and a position."""
    for seed in range(8):
        rng = torch.Generator().manual_seed(seed)
        T = ranks.size + int(torch.randint(0, 12, (), generator=rng))
        decays = torch.tensor([0.0, -0.02, -3.0], dtype=torch.float64)
        case = random_case((2, T, 3, 4, 5), state=seed % 2 == 1, log_decay=decays, seed=seed)
        if seed % 3:
            some = (0.0, 0.05, 0.3)[seed % 3]
            case = case._replace(starts=torch.rand(2, T, generator=rng) < some)
        if seed % 4 > 1:  # with garbage where there is padding, and a slice of nothing else
            valid = torch.rand(2, T, generator=rng) < 0.8
            valid[1, : -(-T // ranks.size)] = False
            garbage = torch.where(valid, 1.0, 1e9)[..., None, None]
            case = case.with_inputs([x * garbage for x in case[:3]])._replace(valid=valid)
        yield case, torch.tensor([7, 2**40]) if seed % 2 else None


def layout(case: Case, ranks: SequenceRanks, position: Tensor | None = None) -> Layout:
    B, T = ranks.part(case.q).shape[:2]
    valid, starts = (None if m is None else ranks.part(m) for m in (case.valid, case.starts))
    return Layout.of(B, T, position=position, valid=valid, starts=starts, sequence=ranks)


def differentiable(case: Case) -> list[Tensor]:
    """q, k, v and the state, if there is one."""
    return [x.clone().requires_grad_() for x in (*case[:3], case.state) if x is not None]


def whole(case: Case, form: Form) -> list[Tensor]:
    """Outputs, final state and gradients of one process with whole rows."""
    leaves = differentiable(case)
    state = leaves[3] if len(leaves) == 4 else None
    q, k, v = leaves[:3]
    o, S = retention(q, k, v, case.log_decay, state, layout=case.layout(), form=form)
    w_o, w_S = weights(o, S)
    grads = torch.autograd.grad((o * w_o).sum() + (S * w_S).sum(), leaves)
    return [o.detach(), S.detach(), *grads]


def spread(case: Case, form: Form, ranks: SequenceRanks) -> list[Tensor]:
    """The same, put together from all ranks."""
    leaves = differentiable(case)
    state = leaves[3] if len(leaves) == 4 else None
    q, k, v = (ranks.part(x) for x in leaves[:3])
    o, S = retention(q, k, v, case.log_decay, state, layout=layout(case, ranks), form=form)
    w_o, w_S = weights(case.v, S)
    share = (ranks.rank + 1) / sum(range(1, ranks.size + 1))  # of a loss of what all ranks have
    loss = (o * ranks.part(w_o)).sum() + share * (S * w_S).sum()
    grads = torch.autograd.grad(loss, leaves)
    every = torch.zeros_like(case.v)
    ranks.part(every).copy_(o.detach())
    assert torch.equal(summed(S.detach()), ranks.size * S.detach())  # the very same on all ranks
    return [summed(every), S.detach(), *map(summed, grads)]


def weights(*tensors: Tensor) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(x.shape, generator=rng).to(x.dtype) for x in tensors]


def outputs_states_and_gradients_are_those_of_one_process() -> None:
    ranks = SequenceRanks.of()
    for case, _ in cases(ranks):
        want = whole(case, "chunkwise")
        for form in FORMS:
            got = spread(case, form, ranks)
            for a, b in zip(got, want, strict=True):
                largest = max(1.0, b.abs().max().item())
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * largest)


def positions_are_those_of_the_whole_rows() -> None:
    ranks = SequenceRanks.of()
    for case, position in cases(ranks):
        B, T = case.q.shape[:2]
        want = Layout.of(B, T, position=position, valid=case.valid, starts=case.starts)
        got = layout(case, ranks, position)
        part = ranks.part(want.positions.expand(B, T))
        assert torch.equal(got.positions.expand(part.shape), part)
        assert torch.equal(got.next_position, want.next_position)


def rounding_is_within_the_budget_of_one_process() -> None:
    ranks = SequenceRanks.of()
    for dtype in (torch.float32, torch.bfloat16):
        case = random_case((2, 101, 4, 16, 24), state=True, dtype=dtype)
        starts = torch.zeros(2, 101, dtype=torch.bool)
        starts[0, 60] = True
        case = case._replace(starts=starts)
        exact = whole(case.double(), "chunkwise")
        for form in ("parallel", "chunkwise"):  # the states that pass are as exact as theirs
            got, plain = spread(case, form, ranks), whole(case, form)
            assert got[1].dtype == torch.float32
            for a, b, judge in zip(got, plain, exact, strict=True):
                assert_within_budget(a, b, judge)


def one_state_is_exchanged_each_way_whatever_the_length() -> None:
    ranks = SequenceRanks.of()
    sent: list[tuple[int, ...]] = []
    gather, scatter = SequenceRanks.gather, SequenceRanks.scatter_sum

    def counted_gather(self: SequenceRanks, own: Tensor) -> Tensor:
        sent.append(own.shape)
        return gather(self, own)

    def counted_scatter(self: SequenceRanks, shares: Tensor) -> Tensor:
        sent.append(shares.shape)
        return scatter(self, shares)

    SequenceRanks.gather, SequenceRanks.scatter_sum = counted_gather, counted_scatter
    try:
        for T in (ranks.size, 40):
            sent.clear()
            spread(random_case((2, T, 3, 4, 5)), "chunkwise", ranks)
            assert sent == [(2, 2), (2, 3, 4, 5), (ranks.size, 2, 3, 4, 5)]
    finally:
        SequenceRanks.gather, SequenceRanks.scatter_sum = gather, scatter


CHECKS = (
    outputs_states_and_gradients_are_those_of_one_process,
    positions_are_those_of_the_whole_rows,
    rounding_is_within_the_budget_of_one_process,
    one_state_is_exchanged_each_way_whatever_the_length,
)
