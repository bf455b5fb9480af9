"""Attention whose weights are a function of each score alone: nothing is normalised over keys."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from retnet.ops.attention.states import AttentionState, appended
from retnet.ops.layout import Layout
from retnet.ops.pairs import Pairs

QUERY_BLOCK = 512
"""Queries whose scores exist at a time."""

Kernel = Literal["relu2", "laplace"]


def relu2(score: Tensor) -> Tensor:
    """`max(score, 0)^2` (So et al. 2021, arXiv:2109.08668)."""
    return score.relu().square()


def laplace(score: Tensor) -> Tensor:
    """Normal distribution function with the mean and deviation that make it like relu2 near it.

    `(1 + erf((score - sqrt(1/2)) / (sqrt(1/(4 pi)) sqrt(2)))) / 2` (Ma et al. 2022,
    arXiv:2209.10655).
    """
    return (1 + torch.erf((score - math.sqrt(0.5)) * math.sqrt(2 * math.pi))) / 2


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"relu2": relu2, "laplace": laplace}


def pointwise_attention(
    q: Float[Tensor, "B T D_k"],
    k: Float[Tensor, "B T D_k"],
    v: Float[Tensor, "B T D_v"],
    state: AttentionState | None = None,
    *,
    kernel: Kernel,
    layout: Layout | None = None,
) -> tuple[Float[Tensor, "B T D_v"], AttentionState]:
    """`o_n = sum_(j<=n) kernel(q_n . k_j) v_j`, j over the real tokens of n's document.

    Scores of 512 queries exist at a time, and in long rows they are computed once more for the
    gradient, so memory grows with T and not with its square.

    Args:
        q: queries, scaled by the caller.
        k: keys.
        v: values.
        state: keys and values of the tokens before, as of one head; None at the start.
        kernel: from `KERNELS`.
        layout: padding, document starts, and how much of the state belongs to each row.

    Returns:
        o in q's dtype, zero at padding, and keys and values of the current document.

    Raises:
        ValueError: the layout's rows are spread over ranks.

    Example:
        >>> import torch
        >>> q = k = torch.ones(1, 3, 1)
        >>> pointwise_attention(q, k, torch.ones(1, 3, 1), kernel="relu2")[0].flatten().tolist()
        [1.0, 2.0, 3.0]
    """
    B, T, _ = q.shape
    layout = layout or Layout.of(B, T, device=q.device)
    if layout.spread is not None:
        raise ValueError(
            "attention does not pass keys between ranks, so its rows must not be spread over "
            "several (sequence); run them whole (train.sequence_ranks = 1)"
        )
    slots = 0 if state is None else state.k.shape[2]
    pairs = Pairs.of(layout, slots)
    weigh = _weigh_again if T > QUERY_BLOCK and torch.is_grad_enabled() else _weigh
    with torch.autocast(q.device.type, enabled=False):
        after = appended(state, k[:, None], v[:, None], layout)
        if state is not None:
            k, v = torch.cat([state.k[:, 0], k], 1), torch.cat([state.v[:, 0], v], 1)
        outputs = []
        for start in range(0, T, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, T)
            queries = slice(slots + start, slots + stop)
            outputs.append(weigh(KERNELS[kernel], q[:, start:stop], k, v, pairs, queries))
        o = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    return o if layout.valid is None else o.where(layout.valid[..., None], 0.0), after


def _weigh(
    kernel: Callable[[Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pairs: Pairs,
    queries: slice,
) -> Tensor:
    keys = slice(queries.stop)  # later ones are in the future
    weights = kernel(q @ k[:, keys].mT).where(pairs.seen(queries, keys), 0.0)
    return weights @ v[:, keys]


def _weigh_again(*arguments: Any) -> Tensor:
    """The same, keeping nothing but its arguments for the gradient, not even the mask."""
    return checkpoint(_weigh, *arguments, use_reentrant=False)


__all__ = ["KERNELS", "Kernel", "laplace", "pointwise_attention", "relu2"]
