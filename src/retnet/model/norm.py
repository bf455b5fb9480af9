"""The decoder's RMSNorm."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.ops.norm import add_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """`retnet.ops.norm.rms_norm`, mostly with a learned weight; same keys as `torch.nn.RMSNorm`."""

    def __init__(self, d_model: int, eps: float, weight: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model)) if weight else None

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Normalise the last dimension."""
        return rms_norm(x, self.weight, self.eps)

    def after(
        self, x: Float[Tensor, "*rows D"], y: Float[Tensor, "*rows D"] | None, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "*rows D"], Float[Tensor, "*rows D"]]:
        """Add y to x, and normalise the sum into `dtype`; see `retnet.ops.norm.add_rms_norm`."""
        return add_rms_norm(x, y, self.weight, self.eps, dtype)
