"""WKV by a walk along the tokens, or along all blocks of tokens at once; derived in README.md.

The names are those of the derivation: before token t a row has the mean `m_t` and the mass
`e^(L_t)`; `odds_t = L_t + w_t - k_t` compares what is left of it, in logarithms, with the token's
own; hence the token's share of their sum is `f = sigmoid(-odds)`, and `rest = sigmoid(odds)`. `s`
is the token's share of the output.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retnet.ops.blocks import blocks
from retnet.ops.wkv.states import NOTHING, exact
from retnet.types import Form

LANES = 1 << 17
"""Numbers that one step works on; with fewer, calls cost more than arithmetic."""

SHORT = 16
"""Tokens below which one walk over them is the least."""


class Masks(NamedTuple):
    """Of a layout, (B, T) or None."""

    valid: Tensor | None
    starts: Tensor | None


def walk(
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    first: Tensor,
    mean: Tensor,
    log_mass: Tensor,
    masks: Masks,
    form: Form | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and mean and log_mass after the last token; `recurrent` is a walk of one block."""
    T, lanes = k.shape[1], k.shape[0] * k.shape[2]
    most = 1 if form == "recurrent" else best_num_blocks(T, lanes)
    num_blocks = min(T, 2) if form == "chunkwise" and most == 1 else most
    return _WKV.apply(k, v, log_decay, first, mean, log_mass, *masks, num_blocks)


def step(
    k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, mean: Tensor, log_mass: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One token of each row, all (B, A): y, and mean and log_mass after it; without gradients.

    `bonus` is time_first + log_decay.
    """
    odds = (log_decay - k).add_(log_mass)
    y = torch.lerp(mean, v, (bonus - odds).sigmoid_())
    mean = torch.lerp(mean, v, odds.neg().sigmoid_())
    return y, mean, torch.logaddexp(odds, odds.new_zeros(())).add_(k)


def best_num_blocks(T: int, lanes: int) -> int:
    """Few steps, none of them of too many lanes; one block is a plain walk.

    A step costs a call whatever it works on. n blocks take T / n steps, and n to join them, but
    visit every token twice.
    """
    return max(1, min(round(2 * T**0.5), LANES // lanes)) if T >= SHORT else 1


class _Part(NamedTuple):
    """Some tokens of every row, in blocks of equal length."""

    start: int
    stop: int
    num_blocks: int

    def of(self, x: Tensor) -> Tensor:
        """Its view of (..., T, A): (..., n, C, A)."""
        return x[..., self.start : self.stop, :].unflatten(-2, (self.num_blocks, -1))


def _parts(T: int, num_blocks: int) -> list[_Part]:
    """As many equal blocks, then the tokens left over."""
    whole = T - T % num_blocks
    parts = [_Part(0, whole, num_blocks)]
    return parts if whole == T else [*parts, _Part(whole, T, 1)]


class _WKV(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913
        ctx: Any,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor,
        first: Tensor,
        mean: Tensor,
        log_mass: Tensor,
        valid: Tensor | None,
        starts: Tensor | None,
        num_blocks: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = _keys(k, valid), v.to(exact(v.dtype))
        decays, marks = _decays(log_decay, keys, valid, starts), _marks(keys, valid)
        odds, means, f = (torch.empty_like(keys) for _ in range(3))
        y = torch.empty_like(v)
        parts = _parts(k.shape[1], num_blocks)
        kept = []
        for part in parts:
            k_p, decays_p, marks_p, odds_p = map(part.of, (keys, decays, marks, odds))
            log_mass, share = _log_masses(k_p, decays_p, marks_p, odds_p, log_mass)
            kept.append(share)
        for odds_b, f_b, valid_b in blocks(odds, f, _flags(valid)):
            torch.neg(odds_b, out=f_b).sigmoid_()
            if valid_b is not None:
                f_b *= valid_b
        for part, share in zip(parts, kept, strict=True):
            mean = _means(part.of(f), part.of(values), share, mean, part.of(means))
        bonus = first + log_decay
        for odds_b, m_b, v_b, y_b, s in blocks(odds, means, values, y, scratch=[keys.dtype]):
            torch.sub(bonus, odds_b, out=s).sigmoid_()
            y_b.copy_(torch.lerp(m_b, v_b, s, out=s))
        ctx.save_for_backward(
            v, bonus, valid, odds, means, mean, *(share for share in kept if share is not None)
        )
        ctx.parts = parts
        return y, mean, log_mass

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        v, bonus, valid, odds, means, mean, *kept = ctx.saved_tensors
        d_y, d_mean, d_log_mass = grads
        values = v.to(exact(v.dtype))
        B, T, A = values.shape
        f, rest, d_k, d_v = (torch.empty_like(values) for _ in range(4))
        # before each token and after the last: g and g y of all tokens from there on, decayed
        sums = values.new_empty(2, B, T + 1, A)
        sums[0, :, T], sums[1, :, T] = d_mean, d_mean * mean - d_log_mass
        d_first, d_decay = torch.zeros_like(bonus), torch.zeros_like(bonus)
        here, after = sums[:, :, :T], sums[:, :, 1:]
        for odds_b, m_b, v_b, g_b, valid_b, G, H, f_b, rest_b, d_k_b, d_v_b, s, y in blocks(
            *(odds, means, values, d_y, _flags(valid), here[0], here[1], f, rest, d_k, d_v),
            scratch=[values.dtype] * 2,
        ):
            torch.sigmoid(odds_b, out=rest_b)
            torch.neg(odds_b, out=f_b).sigmoid_()
            if valid_b is not None:
                f_b *= valid_b
                rest_b.masked_fill_(~valid_b, 1.0)
            torch.sub(bonus, odds_b, out=s).sigmoid_()
            torch.lerp(m_b, v_b, s, out=y)
            torch.mul(g_b, s, out=d_v_b)
            torch.sub(g_b, d_v_b, out=G)
            torch.mul(G, y, out=H)
            torch.mul(d_v_b, torch.sub(v_b, y, out=y), out=d_k_b)
            d_first += d_k_b.sum((0, 1))
        end = sums[:, :, T]
        for part, share in zip(reversed(ctx.parts), _shares(ctx.parts, kept), strict=True):
            end = _sums(part.of(here), part.of(rest), share, end)
        for m_b, v_b, G, H, f_b, rest_b, d_k_b, d_v_b, valid_b, s in blocks(
            *(means, values, after[0], after[1], f, rest, d_k, d_v, _flags(valid)),
            scratch=[values.dtype],
        ):
            d_v_b.addcmul_(f_b, G)
            torch.mul(v_b, G, out=s).sub_(H)
            d_k_b.addcmul_(f_b, s)
            torch.mul(m_b, G, out=s).sub_(H).mul_(rest_b)
            d_decay += (s if valid_b is None else s.mul_(valid_b)).sum((0, 1))
        d_mean, H = sums[0, :, 0], sums[1, :, 0]
        d_log_mass = torch.addcmul(-H, means[:, 0], d_mean)
        return (
            d_k.to(v.dtype),
            d_v.to(v.dtype),
            d_decay,
            d_first,
            d_mean,
            d_log_mass,
            None,
            None,
            None,
        )


def _keys(k: Tensor, valid: Tensor | None) -> Tensor:
    """Keys in the dtype of the state; any finite number will do at padding."""
    k = k.to(exact(k.dtype))
    return k if valid is None else k.where(valid[..., None], 0.0)


def _flags(valid: Tensor | None) -> Tensor | None:
    return None if valid is None else valid[..., None]


def _marks(k: Tensor, valid: Tensor | None) -> Tensor:
    """Logarithm of each token's part in the mass in units of its e^k, 1 or nothing; (B, T, A)."""
    marks = k.new_zeros(1, 1, 1)
    return (marks if valid is None else marks.where(valid[..., None], NOTHING)).expand_as(k)


def _decays(log_decay: Tensor, k: Tensor, valid: Tensor | None, starts: Tensor | None) -> Tensor:
    """What is added to L before each token's key joins it, (B, T, A): w, 0, or the end of all."""
    decays = log_decay.expand_as(k)
    if valid is not None:
        decays = decays * valid[..., None]
    return decays if starts is None else decays.masked_fill(starts[..., None], NOTHING)


def _log_masses(
    k: Tensor, decays: Tensor, marks: Tensor, odds: Tensor, before: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Write odds; L after all tokens, (B, A), and what is left of each block's first mean.

    With several blocks that is a second walk: the first, in which every block begins with nothing,
    says how they begin.
    """
    steps = list(zip(odds.unbind(2), marks.unbind(2), strict=True))
    # what is to be added to L - k of the token before; for a block's first, to L
    torch.sub(k[:, :, :-1], k[:, :, 1:], out=odds[:, :, 1:]).add_(decays[:, :, 1:])
    torch.sub(decays[:, :, 0], k[:, :, 0], out=odds[:, :, 0])
    last = k[:, :, -1]
    if odds.shape[1] == 1:
        return (_walk_masses(steps, before[:, None].clone()) + last)[:, 0], None
    gain, scratch = torch.full_like(last, NOTHING), torch.empty_like(last)
    for added, mark in steps:
        torch.add(added, gain, out=scratch)
        torch.logaddexp(scratch, mark, out=gain)
    same = decays.stride(2) == 0  # one number for all tokens
    decay = decays[:, :, 0] * decays.shape[2] if same else decays.sum(2)
    own = gain.add_(last)
    ends = [before]
    for own_j, decay_j in zip(own.unbind(1), decay.unbind(1), strict=True):
        ends.append(torch.logaddexp(ends[-1] + decay_j, own_j))
    begin = torch.stack(ends[:-1], 1)
    kept = (begin + decay).sub_(torch.stack(ends[1:], 1)).exp_()
    _walk_masses(steps, begin)
    return ends[-1], kept


def _walk_masses(steps: Sequence[tuple[Tensor, Tensor]], gain: Tensor) -> Tensor:
    """Make odds of what is to be added; L less the last key. `gain` is overwritten."""
    for odds_t, mark in steps:
        odds_t.add_(gain)
        torch.logaddexp(odds_t, mark, out=gain)
    return gain


def _means(f: Tensor, v: Tensor, kept: Tensor | None, before: Tensor, means: Tensor) -> Tensor:
    """Write the mean before each token; the one after all, (B, A)."""
    steps = list(zip(f.unbind(2), v.unbind(2), strict=True))
    m = means.unbind(2)
    if kept is None:
        _walk_means(steps, m, before[:, None])
        return torch.lerp(m[-1], v[:, :, -1], f[:, :, -1])[:, 0]
    own = torch.zeros_like(kept)
    for f_t, v_t in steps:
        torch.lerp(own, v_t, f_t, out=own)
    ends = _join(before, own.unbind(1), kept.unbind(1))
    _walk_means(steps, m, torch.stack(ends[:-1], 1))
    return ends[-1]


def _walk_means(
    steps: Sequence[tuple[Tensor, Tensor]], means: Sequence[Tensor], begin: Tensor
) -> None:
    means[0].copy_(begin)
    for (f_t, v_t), m_t, m_next in zip(steps, means, means[1:], strict=False):
        torch.lerp(m_t, v_t, f_t, out=m_next)


def _sums(own: Tensor, rest: Tensor, kept: Tensor | None, end: Tensor) -> Tensor:
    """Let later tokens' numbers, (2, B, n, C, A), flow to those before; the first ones', (2, B, A).

    Args:
        own: of each token alone; overwritten with the sums.
        rest: what a token leaves of its predecessors' part.
        kept: of all tokens of a block together; None for one block.
        end: what comes after the last token.
    """
    steps = list(zip(own.unbind(3), rest.unbind(2), strict=True))[::-1]
    x = end[:, :, None]
    if kept is not None:
        firsts = steps[0][0].clone()
        for own_t, rest_t in steps[1:]:
            torch.addcmul(own_t, rest_t, firsts, out=firsts)
        ends = _join(end, firsts.unbind(2)[::-1], kept.unbind(1)[::-1])
        x = torch.stack(ends[-2::-1], 2)
    for own_t, rest_t in steps:
        x = own_t.addcmul_(rest_t, x)
    return x[:, :, 0]


def _join(before: Tensor, own: Sequence[Tensor], kept: Sequence[Tensor]) -> list[Tensor]:
    """Before the first block, and after each: its own part and what it keeps of the last."""
    ends = [before]
    for own_j, kept_j in zip(own, kept, strict=True):
        ends.append(torch.addcmul(own_j, kept_j, ends[-1]))
    return ends


def _shares(parts: Sequence[_Part], kept: Sequence[Tensor]) -> list[Tensor | None]:
    """What was saved of each part, from the last to the first."""
    left = iter(kept)
    return [None if part.num_blocks == 1 else next(left) for part in parts][::-1]
