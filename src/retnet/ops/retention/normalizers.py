"""Numbers that retention's outputs are divided by before the head norm (README.md)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retnet.ops.layout import Layout
from retnet.ops.retention.torch_backend import chunk_weights, state_dtype


def squared_decay_norm(
    positions: Int[Tensor, "rows T"], log_decay: Float[Tensor, " H"]
) -> Float[Tensor, "rows T H"]:
    """`c_n^2`, the sum of decay^j for j = 0..n, in closed form and log_decay's dtype.

    `expm1((n + 1) log_decay) / expm1(log_decay)`, and n + 1 where log_decay is 0. It needs the
    position only, so every form of retention can divide by it.

    Source:
        arXiv:2307.08621, section 2.2, score normalization.
    """
    count = (positions + 1)[..., None].to(log_decay.dtype)
    one = log_decay == 0
    ratio = torch.expm1(count * log_decay) / torch.expm1(log_decay).where(~one, 1.0)
    return torch.where(one, count, ratio)


@torch.no_grad()
def torchscale_row_sum(
    q: Float[Tensor, "B T H D_k"],
    k: Float[Tensor, "B T H D_k"],
    log_decay: Float[Tensor, " H"],
    squared: Float[Tensor, "rows T H"],
    layout: Layout,
    absolute: bool,
) -> Float[Tensor, "B T H"]:
    """`r_n`, the official code's row normalizer: a sum of the row's scores, at least 1.

    It needs every past score, hence the parallel form and O(T^2) time and memory.

    Args:
        q: rotated queries.
        k: rotated and scaled keys.
        log_decay: per head.
        squared: `c_n^2`, by which the scores were divided.
        layout: padding and document starts.
        absolute: sum of absolute scores capped at 5e4 (since November 2023); False: absolute
            value of the sum (before).
    """
    exact = state_dtype(q.dtype)
    T = q.shape[1]
    scores = q.to(exact).transpose(1, 2) @ k.to(exact).transpose(1, 2).mT  # B H T T
    scores = scores * chunk_weights(log_decay, layout, T, T, exact).within[:, :, 0]
    scores = scores * squared.to(exact).rsqrt().mT[..., None]
    row = scores.abs().sum(-1).clamp(max=5e4) if absolute else scores.sum(-1).abs()
    return row.clamp(min=1).mT
