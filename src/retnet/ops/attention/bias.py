"""Biases of attention's scores: functions of the distance i - j, one for each head.

All say "the nearer the better" in their own way. A key's absolute position does not matter, so
what is the same for all keys of a query, such as the sandwich's value at distance 0, may be left
out: the softmax divides by it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops.rotation import frequencies

SANDWICH_WIDTH = 128
"""Channels of the sinusoids, as in the paper."""


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Float[Tensor, " H"]:
    """`2^(-8 h / H)`, h from 1 to H, in float64.

    Where H is no power of two: those of the power of two below it, then every second of the next
    power's (Press et al. 2022, arXiv:2108.12409, and its official code).
    """
    below = 1 << (num_heads.bit_length() - 1)

    def slopes(count: int, step: int, taken: int) -> Tensor:
        h = torch.arange(taken, dtype=torch.float64, device=device) * step + 1
        return torch.exp2(-8 * h / count)

    return torch.cat([slopes(below, 1, below), slopes(2 * below, 2, num_heads - below)])


def linear_bias(
    distance: Float[Tensor, "rows queries keys"], slopes: Float[Tensor, " H"]
) -> Float[Tensor, "rows H queries keys"]:
    """ALiBi: `-m_h (i - j)`."""
    return -_by_head(slopes, distance) * distance[:, None]


def power_bias(
    distance: Float[Tensor, "rows queries keys"],
    scale: Float[Tensor, " H"],
    power: Float[Tensor, " H"],
) -> Float[Tensor, "rows H queries keys"]:
    """KERPLE's power kernel, `-r_1 (i - j)^r_2` with r_1 > 0 and 0 < r_2 <= 2.

    Source:
        Chi et al. 2022, arXiv:2205.09921, equation 4.
    """
    some = distance > 0  # the gradient of 0^r is that of log 0
    grown = (_by_head(power, distance) * distance.clamp(min=1e-30).log()[:, None]).exp()
    return -_by_head(scale, distance) * grown.where(some[:, None], torch.zeros_like(grown))


def log_bias(
    distance: Float[Tensor, "rows queries keys"],
    scale: Float[Tensor, " H"],
    rate: Float[Tensor, " H"],
) -> Float[Tensor, "rows H queries keys"]:
    """KERPLE's logarithmic kernel, `-r_1 log(1 + r_2 (i - j))` with r_1, r_2 > 0."""
    return -_by_head(scale, distance) * (_by_head(rate, distance) * distance[:, None]).log1p()


def sandwich_bias(
    distance: Float[Tensor, "rows queries keys"], num_heads: int
) -> Float[Tensor, "rows H queries keys"]:
    """Products of sinusoidal positions, `H / (8 h) (p_i . p_j - p_i . p_i)`, h from 1 to H.

    `p_i . p_j` is the sum of cos((i - j) theta_m), a function of the distance alone.

    Source:
        Chi et al. 2023, arXiv:2212.10356; the heads' factors are those of its code.
    """
    product = torch.zeros_like(distance)
    for angle in frequencies("rope", SANDWICH_WIDTH, device=distance.device).tolist():
        product += (distance * angle).cos() - 1  # one at a time: all would be 64 times as large
    h = torch.arange(1, num_heads + 1, dtype=distance.dtype, device=distance.device)
    return _by_head(num_heads / (8 * h), distance) * product[:, None]


def _by_head(x: Tensor, distance: Tensor) -> Tensor:
    return x.to(distance)[:, None, None]
