"""Retention of rows that are spread over ranks: any form, with the state that enters the slice."""

from collections.abc import Callable

import torch
from torch import Tensor

from retnet.ops.layout import Layout
from retnet.ops.retention.torch_backend import own_state, state_dtype
from retnet.ops.sequence import Spread, pass_states


def over_ranks(
    form: Callable[..., tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    layout: Layout,
    spread: Spread,
) -> tuple[Tensor, Tensor]:
    """Outputs of this rank's slice, and S after the whole rows, equal on all ranks.

    Costs one more product of keys and values, and one exchange of a state each way.
    """
    # In the order that forms compute in: what is kept for the gradient is then kept once.
    v = v.transpose(1, 2).contiguous().transpose(1, 2)
    own = own_state(k, v, log_decay, layout)
    carry = spread.carry(log_decay.to(state_dtype(q.dtype)))[..., None, None]  # slices B H 1 1
    given = torch.zeros_like(own) if state is None else state
    entering, leaving = pass_states(own, given, carry, spread.ranks)
    o, _ = form(q, k, v, log_decay, entering, layout)
    return o, leaving
