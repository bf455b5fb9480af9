"""Linear attention: weighted means over everything read, from one matrix and one vector."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from retnet.ops.layout import Layout
from retnet.ops.retention import retention
from retnet.types import Form

FeatureMap = Literal["elu", "relu", "exp", "identity"]

LIMIT = 12.0
"""Of what `exp` is taken of: float32 holds sums of e^24 over more tokens than anyone reads."""


class LinearAttentionState(NamedTuple):
    """Sums over what was read: of keys times values, and of keys."""

    S: Float[Tensor, "B H D_k D_v"]
    z: Float[Tensor, "B H D_k"]


def features(x: Float[Tensor, "*any D_k"], feature_map: FeatureMap) -> Float[Tensor, "*any D_k"]:
    """`elu`: elu(x) + 1, positive; `relu`: max(x, 0); `exp`: e^x, |x| <= 12; `identity`: x."""
    if feature_map == "elu":
        return F.elu(x) + 1
    if feature_map == "exp":
        return x.clamp(-LIMIT, LIMIT).exp()
    return F.relu(x) if feature_map == "relu" else x


def linear_attention(  # noqa: PLR0913  (the op's whole contract; a config would hide it)
    q: Float[Tensor, "B T H D_k"],
    k: Float[Tensor, "B T H D_k"],
    v: Float[Tensor, "B T H D_v"],
    state: LinearAttentionState | None = None,
    *,
    log_decay: Float[Tensor, " H"] | None = None,
    eps: float = 1e-6,
    rotated: tuple[Float[Tensor, "B T H D_k"], Float[Tensor, "B T H D_k"]] | None = None,
    layout: Layout | None = None,
    form: Form = "chunkwise",
) -> tuple[Float[Tensor, "B T H D_v"], LinearAttentionState]:
    """Mean of the values read so far, weighted by how each key's features match the query's.

    `S_n = S_(n-1) + k_n v_n^T`, `z_n = z_(n-1) + k_n` and `o_n = S_n^T q_n / (z_n . q_n + eps)`:
    retention without decay, z the state of a value that is always 1. Differentiable likewise. With
    a decay both fade alike, so that o is a mean in which later tokens count more.

    Args:
        q: features of queries, not negative.
        k: features of keys, likewise.
        v: values.
        state: S and z after the last token; None at the start of a sequence.
        log_decay: of each head, as for retention; None is no decay.
        eps: keeps the quotient finite where no key matches.
        rotated: q and k turned by their position: S and what is read of it then come from these,
            while z and the divisor keep to q and k, so that the divisor stays positive (Su et al.
            2021, arXiv:2104.09864, section 3.3).
        layout: padding, document starts and ranks, as for retention.
        form: of retention.

    Returns:
        o in q's dtype, zero at padding, and the state after the last token, float32 or better.

    Raises:
        ValueError: what retention raises.

    Source:
        Katharopoulos et al. 2020, arXiv:2006.16236, section 3.3.

    Example:
        >>> import torch
        >>> q = k = torch.ones(1, 3, 1, 1)  # equal features: the mean of all values so far
        >>> v = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)
        >>> linear_attention(q, k, v, eps=0.0)[0].flatten().tolist()
        [1.0, 1.5, 3.0]
    """
    if log_decay is None:
        log_decay = torch.zeros(q.shape[2], device=q.device)
    one = v.new_ones(()).expand(*v.shape[:3], 1)
    S, z = (None, None) if state is None else (state.S, state.z[..., None])
    if rotated is None:
        joint = None if S is None or z is None else torch.cat([S, z], -1)
        sums, joint = retention(
            q, k, torch.cat([v, one], -1), log_decay, joint, layout=layout, form=form
        )
        read, mass = sums[..., :-1], sums[..., -1:]
        after = LinearAttentionState(joint[..., :-1], joint[..., -1])
    else:
        read, S = retention(*rotated, v, log_decay, S, layout=layout, form=form)
        mass, z = retention(q, k, one, log_decay, z, layout=layout, form=form)
        after = LinearAttentionState(S, z[..., 0])
    if layout is not None and layout.valid is not None:  # where eps is 0, so is padding's divisor
        mass = mass.masked_fill(~layout.valid[..., None, None], 1.0)
    return read / (mass + eps), after


__all__ = ["FeatureMap", "LinearAttentionState", "features", "linear_attention"]
