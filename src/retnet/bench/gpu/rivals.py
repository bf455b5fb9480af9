"""Rivals of our kernels: flash-linear-attention's retention, and PyTorch's fused attention.

Facts about flash-linear-attention 0.6.0, read in its wheels: `chunk_retention(q, k, v, scale=None,
initial_state=None, output_final_state=False, cu_seqlens=None, **kwargs)` takes (B, T, H, D) and
returns (o, final state or None). Its decays cannot be passed: head h has `1 - 2^(-5-h)`. Scale
None means `D_k^-1/2`; ours is in the keys already, so it gets 1. The op is in the wheel `fla-core`,
which needs `einops` and Triton; `flash-linear-attention` beside it has layers and models alone.
"""

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from retnet.bench.gates import OpInputs
from retnet.bench.peers import PeerMissing

FLA = "flash-linear-attention"
FLA_INSTALL = "pip install --no-deps fla-core==0.6.0 einops"
WIDEST_HEAD = 128  # of attention: wider ones are slower per operation, and no model has them

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


class Rival(NamedTuple):
    """Someone else's op.

    Attributes:
        name: with its version.
        forward: of q, k, v in `inputs`' shapes.
        inputs: what it is called on.
    """

    name: str
    forward: Forward
    inputs: OpInputs


def fla_retention(device: torch.device) -> tuple[str, Forward]:
    """Flash-linear-attention's name and its chunkwise retention, for our inputs.

    Raises:
        PeerMissing: it is not installed, does not load, or there is no GPU for it.
    """
    if device.type != "cuda":
        raise PeerMissing(FLA, "runs on GPUs only", FLA_INSTALL)
    try:
        ops = importlib.import_module("fla.ops.retention")
        version = importlib.metadata.version("fla-core")
    except ImportError as error:
        raise PeerMissing(FLA, f"cannot be imported ({error})", FLA_INSTALL) from error

    def forward(
        q: Float[Tensor, "B T H D_k"], k: Float[Tensor, "B T H D_k"], v: Float[Tensor, "B T H D_v"]
    ) -> Float[Tensor, "B T H D_v"]:
        return ops.chunk_retention(q, k, v, scale=1.0)[0]

    return f"{FLA} {version}", forward


def attention_rival(backend: SDPBackend, inputs: OpInputs) -> Rival:
    """PyTorch's attention by one of its kernels, at the width of the case's queries and keys.

    Attention's values are as wide as its keys, where retention's may be twice as wide: it is the
    attention that a decoder of this width would have, in heads of at most 128.
    """
    q, k, v, d_o = (_heads(x, inputs.q.shape[-1]) for x in inputs[:4])
    own = OpInputs(q, k, v, d_o, inputs.log_decay)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            o = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
            )
        return o.transpose(1, 2)

    kernel = backend.name.removesuffix("_ATTENTION").lower()
    return Rival(f"attention ({kernel}, torch {torch.__version__})", forward, own)


def _heads(x: Float[Tensor, "B T H D"], width: int) -> Float[Tensor, "B T heads D_head"]:
    """The first `width` channels of each head, in heads of at most WIDEST_HEAD."""
    narrow = x[..., :width].flatten(2)
    return narrow.unflatten(2, (-1, min(width, WIDEST_HEAD))).contiguous()
