"""What GAU and FLASH share: one small key for all heads' work, and a gate that is a GLU's.

`[u, v, z] = swish(x W)`, several affine copies of z as queries and keys, and the output
`(u * o) W_o` of what some attention makes of them.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.mixers.branch import Depth
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout
from retnet.ops.gate import gated
from retnet.ops.packed_linear import Weights
from retnet.ops.rotation import PairLayout, rotate, rotation_tables

UnitInit = Literal["gau", "gau_alpha"]

ALPHA_STD = 1.13684723
"""Times fan_in^(-1/2): a normal cut at two deviations then has the variance 1 / fan_in."""


class GatedUnit(nn.Module):
    """The parameters of such a layer and what it does before and after attention."""

    # and no weight decay: gains and offsets, though they are rows of a matrix
    learning_rates: ClassVar[dict[str, float]] = {"gamma": 1.0, "beta": 1.0}

    def __init__(self, d_model: int, width: int, key_width: int, copies: int, bias: bool) -> None:
        super().__init__()
        self.u_proj = nn.Linear(d_model, width, bias=bias)
        self.v_proj = nn.Linear(d_model, width, bias=bias)
        self.z_proj = nn.Linear(d_model, key_width, bias=bias)
        self.o_proj = nn.Linear(width, d_model, bias=bias)
        self.gamma = nn.Parameter(torch.ones(copies, key_width))
        self.beta = nn.Parameter(torch.zeros(copies, key_width)) if bias else None
        self.joint = JointLinear("u_proj", "v_proj", "z_proj")
        self.outward = JointLinear("o_proj")

    def reset_parameters(self, gain: float, depth: Depth, init: UnitInit) -> None:
        """Draw new weights; v and o times `gain`.

        `gau`: normal with deviation 0.02, gamma as well (Hua et al. 2022). `gau_alpha`: a cut
        normal with variance L^(-2/3) / fan_in for L layers, gamma 1 (kexue.fm/archives/9052).
        """
        for proj in (self.u_proj, self.v_proj, self.z_proj, self.o_proj):
            scale = gain if proj is self.v_proj or proj is self.o_proj else 1.0
            if init == "gau":
                nn.init.normal_(proj.weight, std=0.02 * scale)
            else:
                std = ALPHA_STD * proj.in_features**-0.5 * depth.num_layers ** (-1 / 3)
                nn.init.trunc_normal_(proj.weight, std=std, a=-2 * std, b=2 * std)
                proj.weight.data.mul_(scale)
            if proj.bias is not None:
                nn.init.zeros_(proj.bias)
        if init == "gau":
            nn.init.normal_(self.gamma, std=0.02)
        else:
            nn.init.ones_(self.gamma)
        if self.beta is not None:
            nn.init.zeros_(self.beta)

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.joint.pack(self, weights)
        self.outward.pack(self, weights)

    def inward(
        self, x: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B T E"], Float[Tensor, "B T copies D_k"]]:
        """u before its activation, v, and the copies of z."""
        u, v, z = self.joint(self, x)
        copies = F.silu(z)[:, :, None] * self.gamma.to(z.dtype)
        return u, F.silu(v), copies if self.beta is None else copies + self.beta.to(z.dtype)

    def output(self, u: Float[Tensor, "B T E"], o: Float[Tensor, "B T E"]) -> Tensor:
        """What the branch adds to the stream."""
        return self.outward(self, gated(u, o.to(u.dtype)))[0]


def rotated(
    copies: Float[Tensor, "B T copies D_k"], layout: Layout, pairs: PairLayout
) -> Float[Tensor, "B T copies D_k"]:
    """Turn queries and keys by the position of their token."""
    width, dtype = copies.shape[-1], copies.dtype
    cos, sin = layout.shared(
        ("gated unit rotation", width, dtype),
        lambda: rotation_tables(layout.positions, "rope", width, dtype),
    )
    return rotate(copies, cos, sin, pairs)


def check_widths(width: int | None, key_width: int, rotates: bool) -> None:
    """Refuse sizes that cannot be.

    Raises:
        ValueError: a width is not positive, or the key's is odd where its channels turn in pairs.
    """
    if width is not None and width < 1:
        raise ValueError(f"width ({width}) must be at least 1; None means 2 d_model")
    if key_width < 1 or (rotates and key_width % 2):
        raise ValueError(
            f"key_width ({key_width}) must be positive, and even because channels rotate in "
            'pairs; 128 is usual, or set position = "none" for an odd one'
        )
