"""WKV's state, and the form in which other programs keep it."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

NOTHING = -1e30
"""Logarithm of no mass: finite, because -inf - -inf is not a number."""


class WKVState(NamedTuple):
    """A weighted mean of the values read, and the logarithm of the weights' sum.

    The weights are those that the next token sees: e^k of the token read last, decayed once for
    each token since. A row that has read nothing is all zeros.

    Attributes:
        mean: a / b of the recurrence, float32 or better.
        log_mass: log b, likewise.
        seen: 1 where the row has read a token, else 0.
    """

    mean: Float[Tensor, "B A"]
    log_mass: Float[Tensor, "B A"]
    seen: Float[Tensor, " B"]


def fresh_state(like: Float[Tensor, "B T A"]) -> WKVState:
    """Rows that have read nothing, for keys like these."""
    B, _, A = like.shape
    return WKVState(*(like.new_zeros(shape, dtype=exact(like.dtype)) for shape in _shapes(B, A)))


def exact(dtype: torch.dtype) -> torch.dtype:
    """What the recurrence is computed in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def to_scaled_sums(state: WKVState) -> tuple[Tensor, Tensor, Tensor]:
    """`(aa, bb, pp)` with a = aa e^pp and b = bb e^pp, (B, A) each, as the official code keeps it.

    Of all triples that mean the same, the one with bb = 1; zeros and -1e30 for a fresh row.
    """
    some = (state.seen > 0)[:, None]
    return (
        state.mean.where(some, 0.0),
        torch.ones_like(state.mean).where(some, 0.0),
        state.log_mass.where(some, NOTHING),
    )


def from_scaled_sums(
    aa: Float[Tensor, "B A"], bb: Float[Tensor, "B A"], pp: Float[Tensor, "B A"]
) -> WKVState:
    """The state of such a triple, float32 or better; rows without mass are fresh.

    Raises:
        ValueError: a row has mass in some of its channels only, which no text leads to.
    """
    aa, bb, pp = (part.to(exact(part.dtype)) for part in (aa, bb, pp))
    some = bb > 0
    if not torch.equal(some.any(1), some.all(1)):
        raise ValueError(
            "bb is positive in some channels of a row and not in others; a text gives every "
            "channel a positive bb: check the order aa, bb, pp"
        )
    divisor = bb.where(some, 1.0)
    return WKVState(
        (aa / divisor).where(some, 0.0),
        (divisor.log() + pp).where(some, 0.0),
        some.all(1).to(aa.dtype),
    )


def check_state(state: WKVState, k: Tensor) -> None:
    """Refuse a state that does not fit keys."""
    B, _, A = k.shape
    for name, leaf, shape in zip(state._fields, state, _shapes(B, A), strict=True):
        if leaf.shape != shape or leaf.dtype != exact(k.dtype):
            raise ValueError(
                f"state.{name} has shape {tuple(leaf.shape)} and dtype {leaf.dtype}; for k of "
                f"{k.dtype} it must have {shape} and {exact(k.dtype)}: keep states as they came"
            )


def _shapes(B: int, A: int) -> tuple[tuple[int, ...], ...]:
    return (B, A), (B, A), (B,)
