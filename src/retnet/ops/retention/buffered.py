"""Steps that write the state once in many tokens (README.md, "A buffer of tokens")."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

CAPACITY = 16
"""Tokens a buffer holds: then its own traffic is about that of writing the state."""


class Buffer(NamedTuple):
    """A state and the m tokens read since, float32 or better; values, never modified.

    Attributes:
        S: the state before these tokens.
        k: their keys.
        v: their values.
    """

    S: Float[Tensor, "B H D_k D_v"]
    k: Float[Tensor, "B H m D_k"]
    v: Float[Tensor, "B H m D_v"]

    @property
    def is_full(self) -> bool:
        """Whether it takes no more tokens."""
        return self.k.shape[2] >= CAPACITY


def empty_buffer(S: Float[Tensor, "B H D_k D_v"]) -> Buffer:
    """A state, and no token since."""
    B, H, D_k, D_v = S.shape
    S = S.contiguous()  # rows may be one row in memory
    return Buffer(S, S.new_empty(B, H, 0, D_k), S.new_empty(B, H, 0, D_v))


def buffered_step(
    q: Float[Tensor, "B H D_k"],
    k: Float[Tensor, "B H D_k"],
    v: Float[Tensor, "B H D_v"],
    decays: tuple[float, ...],
    buffer: Buffer,
) -> tuple[Float[Tensor, "B H D_v"], Buffer]:
    """The recurrence for one token: reads S and writes nothing as large, in S's dtype.

    Args:
        q: query, in S's dtype.
        k: key, likewise.
        v: value, likewise.
        decays: natural logarithm of each head's decay per token.
        buffer: not full.

    Returns:
        o, and the buffer with this token.
    """
    B, H, D_k = q.shape
    keys = torch.cat((buffer.k, k[:, :, None]), 2)
    values = torch.cat((buffer.v, v[:, :, None]), 2)
    m = keys.shape[2]
    within, from_start = _weights(decays, m, q.dtype, q.device)
    with _as_given(q.device):
        scores = torch.bmm(q.reshape(B * H, 1, D_k), keys.view(B * H, m, D_k).mT)
        scores = scores.view(B, H, 1, m) * within
        decayed = (q[:, :, None] * from_start).view(B * H, 1, D_k)
        o = torch.bmm(decayed, buffer.S.view(B * H, D_k, -1))
        o.baddbmm_(scores.view(B * H, 1, m), values.view(B * H, m, -1))
    return o.view(B, H, -1), Buffer(buffer.S, keys, values)


def settle(buffer: Buffer, decays: tuple[float, ...]) -> Float[Tensor, "B H D_k D_v"]:
    """S after the buffer's tokens."""
    S, keys, values = buffer
    m = keys.shape[2]
    if m == 0:
        return S
    to_end, from_start = _weights(decays, m, S.dtype, S.device)
    with _as_given(S.device):
        update = (keys * to_end.mT).mT @ values
    return update.addcmul_(S, from_start)


def _as_given(device: torch.device) -> AbstractContextManager[object]:
    """Products in the dtype of their factors, whatever autocast would make of them."""
    # entering costs as much as a small product, so only where there is something to turn off
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@cache
def _weights(
    decays: tuple[float, ...], m: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """From each of m tokens to the last, (H, 1, m), and from the state before them, (H, 1, 1)."""
    with torch.inference_mode(False):  # the cache outlives the mode it was filled in
        log_decay = torch.tensor(decays, dtype=torch.float64)[:, None, None]
        after = torch.arange(m - 1, -1, -1, dtype=torch.float64)
        within, from_start = (log_decay * after).exp(), (log_decay * m).exp()
        return within.to(device, dtype), from_start.to(device, dtype)
