"""xPos: rotated products times `zeta_m^((i - j) / S)`, less for what is farther away."""

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops.attention.blocks import Block
from retnet.ops.rotation import PairLayout

SCALE_BASE = 512.0


def xpos_scales(
    block: Block,
    width: int,
    pairs: PairLayout,
    dtype: torch.dtype,
    scale_base: float = SCALE_BASE,
) -> tuple[Float[Tensor, "rows 1 queries D"], Float[Tensor, "rows 1 keys D"]]:
    """Factors of a block's rotated queries and keys.

    `zeta_m = (2 m + 0.4 D) / (1.4 D) <= 1` for pair m of D channels. The origin c cancels in
    `zeta^((i - c) / S) zeta^((c - j) / S)`; it is the block's first query, so keys that were kept
    without a scale get one of at most `zeta^(-queries / S)`, wherever in a text the block is.
    Seen from position 0, float32 would overflow at position 36,000, and float16 at 4,500.

    Source:
        Sun et al. 2022, arXiv:2212.10554, section 3.1; pairs and constants as in its code.
    """
    m = torch.arange(width // 2, dtype=torch.float64, device=block.q_place.device)
    zeta = (2 * m + 0.4 * width) / (1.4 * width)
    zeta = zeta.repeat_interleave(2) if pairs == "interleaved" else zeta.repeat(2)
    origin = block.q_place[:, :1]
    # what no mask shows must not overflow either
    after = (block.k_place - origin).clamp(max=block.q_place.shape[1])
    exponents = (block.q_place - origin, -after)
    q, k = ((zeta ** (x[:, None, :, None] / scale_base)).to(dtype) for x in exponents)
    return q, k
