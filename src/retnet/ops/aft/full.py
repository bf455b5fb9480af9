"""AFT-full: a bias for every pair of positions, so every key and value is kept."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from retnet.ops.aft.positions import NOTHING, bias_rows
from retnet.ops.attention.states import AttentionState, appended
from retnet.ops.layout import Layout
from retnet.ops.pairs import Pairs

BLOCK = 32
"""Queries that are compared with each other one channel at a time; see README.md."""


def aft_full(
    k: Float[Tensor, "B T A"],
    v: Float[Tensor, "B T A"],
    bias: Float[Tensor, "max_len max_len"],
    state: AttentionState | None = None,
    *,
    layout: Layout | None = None,
) -> tuple[Float[Tensor, "B T A"], AttentionState]:
    """Mean of all values so far; e^(k_j + bias_tj) is the weight of token j at t.

    Blocks of queries are computed once more for the gradient, so memory grows with T and not with
    its square.

    Args:
        k: logarithms of weights, of any size.
        v: values.
        bias: by position of the query and of the key; of one query's, those that matter must lie
            within 80 of each other in float32.
        state: keys and values of the tokens before, as of one head; None at the start of a
            sequence.
        layout: padding, document starts and positions.

    Returns:
        The means in v's dtype, zero at padding, and keys and values of the current document.

    Raises:
        ValueError: a document has more than max_len tokens, or rows are spread over ranks.

    Source:
        Zhai et al. 2021, arXiv:2105.14103, section 3.1; how it is computed: this folder's README.
    """
    B, T, _ = k.shape
    layout = layout or Layout.of(B, T, device=k.device)
    position = bias_rows(layout, len(bias))  # rows T
    after = appended(state, k[:, None], v[:, None], layout)
    slots = 0 if state is None else state.k.shape[2]
    exact = torch.promote_types(k.dtype, torch.float32)
    keys, values, bias = k.to(exact), v.to(exact), bias.to(exact)
    at = position
    if state is not None:
        keys = torch.cat([state.k[:, 0].to(exact), keys], 1)
        values = torch.cat([state.v[:, 0].to(exact), values], 1)
        slot = torch.arange(slots, device=k.device).clamp(max=len(bias) - 1)
        at = torch.cat([slot.expand(len(position), -1), position], 1)
    pairs = Pairs.of(layout, slots)
    starts = range(slots, slots + T, BLOCK)
    block = _block_again if len(starts) > 1 and torch.is_grad_enabled() else _block
    outputs = []
    for start in starts:
        here = slice(start, min(start + BLOCK, slots + T))
        outputs.append(block(keys, values, bias, at, pairs, here))
    y = torch.cat(outputs, 1).to(v.dtype)
    return y if layout.valid is None else y.where(layout.valid[..., None], 0.0), after


def _block(
    keys: Tensor, values: Tensor, bias: Tensor, at: Tensor, pairs: Pairs, here: slice
) -> Tensor:
    """Means of the queries `here`."""
    start = here.start
    rows = bias[at[:, here, None], at[:, None, : here.stop]]  # rows queries keys
    logits = keys[:, None, here] + rows[..., start:, None]  # B queries keys A
    logits = logits.where(pairs.seen(here, here)[..., None], NOTHING)
    means = values[:, None, here].expand_as(logits)
    if start:  # whoever looks back beyond the block has the document that is open before it
        past = slice(start)
        open_ = pairs.seen(slice(start, start + 1), past)[:, 0]
        mean, log_mass = _joint(keys[:, past], values[:, past], rows[..., past], open_)
        same = pairs.document[:, here] == pairs.document[:, start, None]
        log_mass = log_mass.where(same[..., None], NOTHING)
        logits = torch.cat([logits, log_mass[:, :, None]], 2)
        means = torch.cat([means, mean[:, :, None]], 2)
    return (logits.softmax(2) * means).sum(2)


def _block_again(*arguments: Any) -> Tensor:
    """The same, keeping nothing but its arguments for the gradient."""
    return checkpoint(_block, *arguments, use_reentrant=False, preserve_rng_state=False)


def _joint(
    keys: Tensor, values: Tensor, bias: Tensor, seen: Bool[Tensor, "rows past"]
) -> tuple[Tensor, Tensor]:
    """Mean of the keys' values for each query, and the logarithm of the weights' sum, by products.

    Args:
        keys: (B, past, A).
        values: likewise.
        bias: (rows, queries, past).
        seen: which keys count; those that queries see are the same for all of a block.
    """
    keys = keys.where(seen[..., None], NOTHING)
    bias = bias.where(seen[:, None], NOTHING)
    top = keys.detach().amax(1, keepdim=True)  # B 1 A
    bias_top = bias.detach().amax(2, keepdim=True)  # B queries 1
    weights = (keys - top).exp() * seen[..., None]
    with torch.autocast(keys.device.type, enabled=False):  # sums must not fall to half precision
        sums = (bias - bias_top).exp() @ torch.cat([weights, weights * values], 2)
    mass, total = sums.chunk(2, 2)  # B queries A
    tiny = torch.finfo(mass.dtype).tiny
    some = mass > tiny
    mass = mass.where(some, 1.0)
    log_mass = (mass.log() + top + bias_top).where(some, NOTHING)
    return (total / mass).where(some, 0.0), log_mass
