"""One token of retention with the state changed in place: what a decoder repeats."""

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops.retention.arguments import check
from retnet.ops.retention.backends import resolve, triton
from retnet.types import Backend


@torch.no_grad()
def retention_step_(
    q: Float[Tensor, "B 1 H D_k"],
    k: Float[Tensor, "B 1 H D_k"],
    v: Float[Tensor, "B 1 H D_v"],
    log_decay: Float[Tensor, " H"],
    state: Float[Tensor, "B H D_k D_v"],
    *,
    backend: Backend | None = None,
) -> Float[Tensor, "B 1 H D_v"]:
    """`state = exp(log_decay) state + k v^T` in place, and `o = state^T q` in q's dtype.

    What `retention` computes for a single real token, without a new state: nothing but o is
    allocated, so that a CUDA graph can capture it. No gradients, no padding.

    Args:
        q: queries, rotated and scaled by the caller.
        k: keys, likewise.
        v: values.
        log_decay: natural logarithm of each head's decay per token, on q's device.
        state: S before the token, float32 (float64 for float64 inputs); S after it on return.
        backend: who computes it; None means `triton` for CUDA tensors that it takes, else `torch`.

    Raises:
        ValueError: as `retention`, or q has more than one token.
    """
    check(q, k, v, log_decay, state, None)
    if q.shape[1] != 1:
        raise ValueError(
            f"q has shape {tuple(q.shape)}; a step takes one token of each row, (B, 1, H, D_k): "
            "use retention() for more"
        )
    with torch.autocast(q.device.type, enabled=False):
        if resolve(backend, "recurrent", q, v) == "triton":
            return triton().step(q, k, v, log_decay, state)
        q_n, k_n, v_n = (x[:, 0].to(state.dtype) for x in (q, k, v))  # B H D
        state.mul_(log_decay.to(state.dtype).exp()[:, None, None])
        state.addcmul_(k_n[..., :, None], v_n[..., None, :])
        return (q_n[..., None, :] @ state).mT[..., 0][:, None].to(q.dtype)
