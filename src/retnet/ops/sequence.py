"""Rows spread over processes: each computes a slice of their tokens, and states pass between."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SequenceRanks:
    """The processes that one row is spread over, in the order of its tokens.

    Attributes:
        group: PyTorch's process group of them; None for the group of all processes.
        rank: which slice of each row this process has, from 0.
        size: how many slices there are.
    """

    group: "dist.ProcessGroup | None"
    rank: int
    size: int

    @classmethod
    def of(cls, group: "dist.ProcessGroup | None" = None) -> "SequenceRanks":
        """The ranks of a process group; of all processes if none is named.

        Raises:
            ValueError: the processes have not been introduced to each other.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "there is no process group; start the program with torchrun and call "
                "torch.distributed.init_process_group first"
            )
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    def part(self, rows: Tensor) -> Tensor:
        """This process's slice of whole rows (B, T, ...); slices differ by one token at most.

        Raises:
            ValueError: there are fewer tokens than ranks.
        """
        tokens = rows.shape[1]
        if tokens < self.size:
            raise ValueError(
                f"rows of {tokens} tokens cannot be spread over {self.size} ranks, each of which "
                "needs at least one; use longer rows or fewer ranks"
            )
        return rows[:, tokens * self.rank // self.size : tokens * (self.rank + 1) // self.size]

    def gather(self, own: Tensor) -> Tensor:
        """Every rank's tensor, stacked along a new first dimension."""
        every = own.new_empty(self.size, *own.shape)
        dist.all_gather(list(every.unbind()), own.contiguous(), group=self.group)
        return every

    def scatter_sum(self, shares: Tensor) -> Tensor:
        """The sum, in the order of the ranks, of what every rank has for this one.

        Args:
            shares: what this rank has for each, along the first dimension.
        """
        # As many bytes as a reduce-scatter, but no backend chooses the order of the sum.
        received = torch.empty_like(shares)
        dist.all_to_all_single(received, shares, group=self.group)
        return received.sum(0)


class Spread(NamedTuple):
    """What every rank knows of all the slices that a call's rows were cut into.

    Attributes:
        ranks: who has them, in order.
        counts: real tokens of each slice, from its last document start if it has one.
        starts: whether a document starts in the slice.
    """

    ranks: SequenceRanks
    counts: Int[Tensor, "slices B"]
    starts: Bool[Tensor, "slices B"]

    @classmethod
    def gather(
        cls, ranks: SequenceRanks, count: Int[Tensor, " B"], starts: Bool[Tensor, " B"]
    ) -> "Spread":
        """Tell the other ranks about this one's slice: 16 bytes a row."""
        every = ranks.gather(torch.stack([count, starts.to(count.dtype)]))  # slices 2 B
        return cls(ranks, every[:, 0], every[:, 1].bool())

    def positions(self, before: Int[Tensor, " B"] | None) -> tuple[Tensor, Tensor]:
        """Tokens of the current document before this rank's slice, and after the whole rows."""
        given = torch.zeros_like(self.counts[0]) if before is None else before
        return through_slices(given, (~self.starts).long(), self.counts, self.ranks.rank)

    def carry(self, log_decay: Float[Tensor, " H"]) -> Float[Tensor, "slices B H"]:
        """What is left, after each slice, of a state that entered it."""
        return (self.counts[..., None] * log_decay).exp() * ~self.starts[..., None]


def through_slices(
    given: Tensor, carry: Iterable[Tensor], own: Iterable[Tensor], rank: int
) -> tuple[Tensor, Tensor]:
    """Send a state through all slices, `state -> carry * state + own`.

    Args:
        given: before the first slice.
        carry: of each slice.
        own: the state after each slice had nothing entered it.
        rank: the slice that asks.

    Returns:
        The state that enters slice `rank`, and the one after the last slice.
    """
    state = entering = given
    for index, (factor, value) in enumerate(zip(carry, own, strict=True)):
        if index == rank:
            entering = state
        state = factor * state + value
    return entering, state


def pass_states(
    own: Tensor, given: Tensor, carry: Tensor, ranks: SequenceRanks
) -> tuple[Tensor, Tensor]:
    """`through_slices` where each rank knows only its own slice's state; differentiable.

    The loss is the sum of all ranks' losses. `given` and the state after the last slice are equal
    on all ranks, and the gradient that each rank gets for, or gives to, its copy of them is its
    share of a sum.

    Args:
        own: the state after this rank's slice had nothing entered it.
        given: before the first slice, equal on all ranks.
        carry: of each slice, (slices, ...), to multiply states with; it receives no gradient.
        ranks: who has the slices; all of them must call.
    """
    return _PassStates.apply(own, given, carry, ranks)


class _PassStates(torch.autograd.Function):
    """One exchange of a state each way.

    The fold over the slices is in here, too: every rank's backward pass must come to the
    exchange, also the first rank's, which nobody's state enters.
    """

    @staticmethod
    def forward(
        ctx: Any, own: Tensor, given: Tensor, carry: Tensor, ranks: SequenceRanks
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(carry)
        ctx.ranks = ranks
        return through_slices(given, carry, ranks.gather(own), ranks.rank)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_entering, d_state = grads
        (carry,) = ctx.saved_tensors
        shares = torch.empty(len(carry), *d_state.shape, dtype=d_state.dtype, device=d_state.device)
        for index in reversed(range(len(carry))):
            shares[index] = d_state
            d_state = carry[index] * d_state
            if index == ctx.ranks.rank:
                d_state = d_state + d_entering
        return ctx.ranks.scatter_sum(shares), d_state, None, None
