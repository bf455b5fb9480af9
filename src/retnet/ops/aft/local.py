"""AFT-local: biases for near tokens only, so far ones are kept as one mean."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retnet.ops.aft.positions import NOTHING, bias_rows
from retnet.ops.attention.states import documents
from retnet.ops.layout import Layout
from retnet.ops.previous import previous_tokens
from retnet.ops.wkv import WKVState, wkv


class AFTLocalState(NamedTuple):
    """Near tokens one by one, and all others as one.

    Attributes:
        mean: of the values of far tokens, weighted by e^k.
        log_mass: logarithm of their weights' sum.
        seen: 1 where there are such tokens, else 0.
        k: keys of the last `window` tokens, the latest last, zeros where there were none.
        v: their values.
    """

    mean: Float[Tensor, "B A"]
    log_mass: Float[Tensor, "B A"]
    seen: Float[Tensor, " B"]
    k: Float[Tensor, "B window A"]
    v: Float[Tensor, "B window A"]


def aft_local(
    k: Float[Tensor, "B T A"],
    v: Float[Tensor, "B T A"],
    bias: Float[Tensor, "max_len window"],
    state: AFTLocalState | None = None,
    *,
    layout: Layout | None = None,
) -> tuple[Float[Tensor, "B T A"], AFTLocalState]:
    """Mean of all values so far: the weight of token j at t is e^(k_j + bias_(t, t-j)).

    The bias is 0 for t - j >= window: such tokens still count.

    Args:
        k: logarithms of weights, of any size.
        v: values.
        bias: by position of the query, and by how far back the key is.
        state: after the last token; None at the start of a sequence.
        layout: padding, document starts and positions.

    Returns:
        The means in v's dtype, zero at padding, and the state after the last token.

    Raises:
        ValueError: a document has more than max_len tokens, or rows are spread over ranks.

    Source:
        Zhai et al. 2021, arXiv:2105.14103, section 3.2; how it is computed: this folder's README.
    """
    B, T, A = k.shape
    layout = layout or Layout.of(B, T, device=k.device)
    position, dtype = bias_rows(layout, len(bias)), v.dtype
    window = bias.shape[1]
    exact = torch.promote_types(k.dtype, torch.float32)
    k, v, bias = k.to(exact), v.to(exact), bias.to(exact)
    none = k.new_zeros(B, A)
    far = WKVState(none, none, none[:, 0]) if state is None else WKVState(*state[:3])
    before_k, before_v = (None, None) if state is None else (state.k, state.v)
    (*keys, far_k), after_k = previous_tokens(k, window, before_k, layout=layout)
    (*values, far_v), after_v = previous_tokens(v, window, before_v, layout=layout)
    means, log_masses, far = _far(far_k, far_v, position, window, far, layout)

    back = torch.arange(window, device=k.device)
    logits = torch.stack([k, *keys], 2) + bias[position][..., None]  # B T window A
    logits = logits.where((back <= position[..., None])[..., None], NOTHING)
    weights = torch.cat([logits, log_masses[:, :, None]], 2).softmax(2)
    y = (weights * torch.stack([v, *values, means], 2)).sum(2).to(dtype)
    if layout.valid is not None:
        y = y.where(layout.valid[..., None], 0.0)
    return y, AFTLocalState(*far, after_k, after_v)


def _far(
    k: Tensor, v: Tensor, position: Tensor, window: int, state: WKVState, layout: Layout
) -> tuple[Tensor, Tensor, WKVState]:
    """Means and log masses of the tokens that are far from each token, and after the last.

    Args:
        k: key of the token `window` back, (B, T, A): the one that becomes far.
        v: its value.
        position: of each token; below `window` there is no such token.
        window: near tokens.
        state: of those that were far before.
        layout: of the call.
    """
    k = k.where((position >= window)[..., None], NOTHING)
    forget = torch.full_like(k[0, 0], -torch.inf)  # nothing decays
    means, after = wkv(k, v, forget, torch.zeros_like(forget), state, layout=layout)
    some = layout.next_position > window
    after = WKVState(
        after.mean.where(some[:, None], 0.0),
        after.log_mass.where(some[:, None], 0.0),
        some.to(after.seen.dtype),
    )
    if layout.valid is not None:
        k = k.where(layout.valid[..., None], NOTHING)
    document = documents(layout)
    if document is not None:
        document = torch.cat([torch.zeros_like(document[:, :1]), document], 1)
    before = state.log_mass.where(state.seen[:, None] > 0, NOTHING)
    log_masses = _running_log_sum(torch.cat([before[:, None], k], 1), document)
    return means, log_masses[:, 1:], after


def _running_log_sum(x: Tensor, document: Int[Tensor, "B T"] | None) -> Tensor:
    """`log sum_(j<=t) e^x_j`, j over t's document, (B, T, A): sums of 1, 2, 4, ... tokens."""
    T, step = x.shape[1], 1
    while step < T:
        earlier = x[:, :-step]
        if document is not None:
            same = document[:, step:] == document[:, :-step]
            earlier = earlier.where(same[..., None], NOTHING)
        x = torch.cat([x[:, :step], torch.logaddexp(x[:, step:], earlier)], 1)
        step *= 2
    return x
