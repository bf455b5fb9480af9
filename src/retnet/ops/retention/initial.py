"""A document that begins with a state instead of nothing (README.md, "An initial state")."""

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops.layout import Layout


def initial_output(
    q: Float[Tensor, "B T H D_k"],
    log_decay: Float[Tensor, " H"],
    initial: Float[Tensor, "H D_k D_v"],
    layout: Layout,
) -> Float[Tensor, "B T H D_v"]:
    """What each output gains when every document begins with the state `initial`, in q's dtype.

    Retention is linear in its state, so a start from S_0 adds `decay^(n + 1) S_0^T q_n` to the
    output at position n and changes nothing else. That needs the position only: documents inside
    packed rows, padding, segments with a carried state and every form are served alike, and the
    states that are carried stay those of a start from nothing. At padding it is zero.

    Args:
        q: queries, rotated.
        log_decay: natural logarithm of each head's decay per token.
        initial: S_0, one for all rows.
        layout: the positions.
    """
    count = layout.positions + 1
    weight = (count[..., None].to(log_decay.dtype) * log_decay).exp()  # rows T H
    if layout.valid is not None:
        weight = weight * layout.valid[..., None]
    with torch.autocast(q.device.type, enabled=False):
        decayed = q * weight[..., None].to(q.dtype)
        return torch.einsum("bthk,hkv->bthv", decayed, initial.to(q.dtype))
