"""AFT-local: biases for near tokens only, so far ones are kept as one mean."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retnet.ops.aft.positions import NOTHING, bias_rows
from retnet.ops.attention.states import documents
from retnet.ops.layout import Layout
from retnet.ops.wkv import WKVState, wkv


class AFTLocalState(NamedTuple):
    """Near tokens one by one, and all others as one.

    Attributes:
        mean: of the values of tokens that no later token has a bias for, weighted by e^k.
        log_mass: logarithm of their weights' sum.
        seen: 1 where there are such tokens, else 0.
        k: keys of the last window - 1 tokens, the latest last, zeros where there were none.
        v: their values.
    """

    mean: Float[Tensor, "B A"]
    log_mass: Float[Tensor, "B A"]
    seen: Float[Tensor, " B"]
    k: Float[Tensor, "B near A"]
    v: Float[Tensor, "B near A"]


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
    position = bias_rows(layout, len(bias))
    window, dtype = bias.shape[1], v.dtype
    near = window - 1
    line = layout.shared(
        ("aft line", window, state is None), lambda: _line_up(layout, B, near, state is not None)
    )
    exact = torch.promote_types(k.dtype, torch.float32)
    k, v, biases = line.of(k.to(exact)), line.of(v.to(exact)), line.of(bias.to(exact)[position])
    if state is None:
        none = k.new_zeros(B, A)
        empty = k.new_zeros(B, near, A)
        state = AFTLocalState(none, none, none[:, 0], empty, empty)
    keys, values = torch.cat([state.k, k], 1), torch.cat([state.v, v], 1)  # B near+T A

    forget = torch.full((A,), -torch.inf, device=k.device)  # nothing decays
    sums = WKVState(state.mean, state.log_mass, state.seen)
    means, far = wkv(
        keys[:, :T], values[:, :T], forget, torch.zeros_like(forget), sums, layout=line.folded
    )
    means = torch.cat([state.mean[:, None], means[:, :-1]], 1)  # of what is far from each query
    some = (state.seen > 0)[:, None, None]
    folded = keys[:, : T - 1].where(line.folded.valid[:, : T - 1, None], NOTHING)  # type: ignore[index]
    log_masses = torch.cat([state.log_mass[:, None].where(some, NOTHING), folded], 1)
    log_masses = _running_log_sum(log_masses, line.far_document)
    log_masses = log_masses.where(line.far_seen[..., None], NOTHING)

    logits = keys.unfold(1, window, 1) + biases.flip(-1)[:, :, None]  # B T A window, oldest first
    logits = logits.where(line.near_seen[:, :, None], NOTHING)
    weights = torch.cat([logits, log_masses[..., None]], -1).softmax(-1)
    y = (weights[..., :-1] * values.unfold(1, window, 1)).sum(-1) + weights[..., -1] * means
    return line.back(y).to(dtype), line.after(far, keys, values)


class _Line(NamedTuple):
    """A row's near tokens of the state and then the real tokens of the call, without gaps.

    Attributes:
        place: of each token among the T of the call; T for padding. None where all are real.
        near_seen: which of the `window` tokens up to each the query may look at.
        far_document: of what has become far before each query, the state being document 0.
        far_seen: whether that is the query's own document.
        folded: which of the first T tokens of the line become far in this call.
        recent: places in the line of the near tokens after the call.
        recent_seen: whether there are such tokens, of the last document.
        far_kept: whether what is far then is of the last document.
    """

    place: Int[Tensor, "B T"] | None
    near_seen: Bool[Tensor, "B T window"]
    far_document: Int[Tensor, "B T"]
    far_seen: Bool[Tensor, "B T"]
    folded: Layout
    recent: Int[Tensor, "B near"]
    recent_seen: Bool[Tensor, "B near"]
    far_kept: Bool[Tensor, " B"]

    def of(self, x: Tensor) -> Tensor:
        """Put x (B or 1, T, N) of the call's tokens in line."""
        if self.place is None:
            return x
        return _lined_up(x, self.place)

    def back(self, y: Tensor) -> Tensor:
        """The reverse; padding is zero."""
        if self.place is None:
            return y
        B, _, A = y.shape
        y = torch.cat([y, y.new_zeros(B, 1, A)], 1)
        return y.gather(1, self.place[..., None].expand(-1, -1, A))

    def after(self, far: WKVState, keys: Tensor, values: Tensor) -> AFTLocalState:
        """The state after the call."""
        at = self.recent[..., None].expand(-1, -1, keys.shape[2])
        kept = self.far_kept[:, None]
        return AFTLocalState(
            far.mean.where(kept, 0.0),
            far.log_mass.where(kept, 0.0),
            far.seen * self.far_kept,
            *(x.gather(1, at).where(self.recent_seen[..., None], 0.0) for x in (keys, values)),
        )


def _lined_up(x: Tensor, place: Tensor) -> Tensor:
    B, T = place.shape
    x = x.expand(B, *x.shape[1:])
    at = place[(..., *[None] * (x.ndim - 2))].expand_as(x)
    return x.new_zeros(B, T + 1, *x.shape[2:]).scatter(1, at, x)[:, :T]


def _line_up(layout: Layout, B: int, near: int, has_state: bool) -> _Line:
    T, device = layout.positions.shape[1], layout.positions.device
    document = documents(layout)
    if document is None:
        document = torch.zeros(B, T, dtype=torch.int64, device=device)
    last = document[:, -1]
    real = torch.ones(B, T, dtype=torch.bool, device=device)
    place, count = None, torch.full((B,), T, device=device)
    if layout.valid is not None:
        seen = layout.valid.long().cumsum(1)
        place, count = torch.where(layout.valid, seen - 1, T), seen[:, -1]
        document = _lined_up(document, place)
        real = torch.arange(T, device=device) < count[:, None]
    held = layout.positions[:, 0].clamp(max=near) if has_state else torch.zeros_like(count)
    held = torch.arange(near, device=device) >= near - held.expand(B)[:, None]
    document = torch.cat([document.new_zeros(B, near), document], 1)  # B near+T
    real = torch.cat([held, real], 1)
    query = document[:, near:]
    near_seen = real.unfold(1, near + 1, 1) & (document.unfold(1, near + 1, 1) == query[..., None])
    far_document = torch.cat([document.new_zeros(B, 1), document[:, : T - 1]], 1)
    starts = document[:, :T] != far_document
    valid = real[:, :T] & (torch.arange(T, device=device) < count[:, None])
    recent = count[:, None] + torch.arange(near, device=device)
    before = torch.cat([document.new_zeros(B, 1), document], 1)  # of the token before each place
    return _Line(
        place,
        near_seen,
        far_document,
        far_document == query,
        Layout.of(B, T, valid=valid, starts=starts),
        recent,
        real.gather(1, recent) & (document.gather(1, recent) == last[:, None]),
        before.gather(1, count[:, None])[:, 0] == last,
    )


def _running_log_sum(x: Tensor, document: Int[Tensor, "B T"]) -> Tensor:
    """`log sum_(j<=t) e^x_j`, j over t's document, (B, T, A): sums of 1, 2, 4, ... tokens."""
    T, step = x.shape[1], 1
    while step < T:
        same = document[:, step:] == document[:, :-step]
        earlier = x[:, :-step].where(same[..., None], NOTHING)
        x = torch.cat([x[:, :step], torch.logaddexp(x[:, step:], earlier)], 1)
        step *= 2
    return x
