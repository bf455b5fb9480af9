"""How a block of queries weighs its keys: PyTorch's kernels, and what they cannot do."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from retnet.ops.attention.blocks import Block
from retnet.ops.layout import Layout

Weights = Literal["softmax", "l2", "exp"]

OfDistance = Callable[[Float[Tensor, "rows queries keys"]], Float[Tensor, "rows H queries keys"]]
"""A function of the distance `i - j >= 0` for each head."""


@dataclass(frozen=True, eq=False)
class Rule:
    """What differs from `softmax(q . k / sqrt(D_k))`; nothing by default.

    Attributes:
        scale: of the scores; None means `D_k ** -0.5`.
        bias: added to the scores.
        bias_name: of a bias that layers share because it learns nothing; None if it does.
        factor: of the weights, after the softmax.
        weights: `softmax`; `l2`: `exp(s_ij) / sqrt(sum_j exp(2 s_ij))`; `exp`: `exp(s_ij)`, the
            softmax without its denominator.
        turn: queries and keys of a block to those whose products are wanted; for keys that are
            kept without what depends on where they are read from.
        scores: of a block's scaled queries and keys, in place of their products.
        positions: of a call's tokens, for distances, in place of their own; only without a state.
    """

    scale: float | None = None
    bias: OfDistance | None = None
    bias_name: Hashable = None
    factor: OfDistance | None = None
    weights: Weights = "softmax"
    turn: Callable[[Tensor, Tensor, Block], tuple[Tensor, Tensor]] | None = None
    scores: Callable[[Tensor, Tensor, Block], Tensor] | None = None
    positions: Float[Tensor, "rows T"] | Int[Tensor, "rows T"] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether PyTorch's kernels need nothing but a scale."""
        return self.bias is None and self.turn is None and self.by_kernel

    @property
    def by_kernel(self) -> bool:
        """Whether PyTorch's kernels can do it."""
        return self.factor is None and self.scores is None and self.weights == "softmax"

    @property
    def is_large(self) -> bool:
        """Whether gradients need numbers of every pair of tokens, which layers do not share."""
        return not self.by_kernel or (self.bias is not None and self.bias_name is None)


PLAIN = Rule()


def mixed(
    q: Float[Tensor, "B H queries D_k"],
    k: Float[Tensor, "B H_kv keys D_k"],
    v: Float[Tensor, "B H_kv keys D_v"],
    block: Block,
    rule: Rule,
    layout: Layout,
) -> Float[Tensor, "B H queries D_v"]:
    """Outputs of a block, given its own queries and keys."""
    mask: Tensor = block.mask
    if rule.bias is not None:
        build = partial(_biased, block, rule, q.dtype)
        name = ("attention bias", rule.bias_name, block.name, q.dtype)
        mask = build() if rule.bias_name is None else layout.shared(name, build)
    if rule.turn is not None:
        q, k = rule.turn(q, k, block)
    if rule.by_kernel:
        if q.shape[2] == 1:
            return one_token(q, k, v, mask, rule.scale)
        return sdpa(q, k, v, mask=mask, scale=rule.scale)
    return _weighed(q, k, v, mask, block, rule)


def mixed_again(*arguments: Any) -> Tensor:
    """`mixed`, keeping nothing but its arguments for the gradient: no scores, and no bias."""
    return checkpoint(mixed, *arguments, use_reentrant=False, preserve_rng_state=False)


def one_token(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attend with one query per row and head, (B, H, 1, D_v), to all keys or those of the mask.

    Heads that share keys become queries of one head, so that the keys are read once.
    """
    B, H, _, D_k = q.shape
    grouped = q.reshape(B, k.shape[1], H // k.shape[1], D_k)  # B H_kv G D_k
    if mask is not None and mask.shape[1] != 1:
        mask = mask.view(len(mask), k.shape[1], -1, mask.shape[-1])
    o = F.scaled_dot_product_attention(grouped, k, v, mask, scale=scale)
    return o.reshape(B, H, 1, v.shape[-1])


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """PyTorch's attention; fewer heads of keys than of queries are shared."""
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=is_causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def distances(block: Block, rule: Rule, dtype: torch.dtype) -> Float[Tensor, "rows queries keys"]:
    """`i - j` of the pairs, in float32 at least; 0 where negative, which no mask allows."""
    q, k = block.q_place, block.k_place
    if rule.positions is not None:
        q, k = rule.positions[:, block.start : block.stop], block.taken(rule.positions, 1)
    distance = (q[..., None] - k[:, None]).clamp(min=0)
    return distance.to(torch.promote_types(dtype, torch.float32))


def _biased(block: Block, rule: Rule, dtype: torch.dtype) -> Tensor:
    """Bias where the mask allows and -inf elsewhere, which kernels add to the scores."""
    assert rule.bias is not None
    bias = rule.bias(distances(block, rule, dtype)).to(dtype)
    return torch.where(block.mask, bias, torch.full_like(bias[:1, :1, :1, :1], -torch.inf))


def _weighed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, block: Block, rule: Rule) -> Tensor:
    """Scores, weights and sums as three steps, in float32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, values = (x.to(wide) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    scores = (rule.scores or _products)(q * scale, k, block)
    seen = mask.dtype == torch.bool
    scores = scores.masked_fill(~mask, -torch.inf) if seen else scores + mask
    weights = _normalised(scores, rule.weights)
    if rule.factor is not None:
        weights = weights * rule.factor(distances(block, rule, wide)).to(wide)
    grouped = weights.unflatten(1, (k.shape[1], -1))  # B H_kv G queries keys
    return (grouped @ values[:, :, None]).flatten(1, 2).to(v.dtype)


def _products(q: Tensor, k: Tensor, block: Block) -> Tensor:  # noqa: ARG001
    return products(q, k)


def products(
    q: Float[Tensor, "B H queries D"], k: Float[Tensor, "B H_kv keys D"]
) -> Float[Tensor, "B H queries keys"]:
    """Every query with every key, those of each head or of the heads that share one."""
    return (q.unflatten(1, (k.shape[1], -1)) @ k.mT[:, :, None]).flatten(1, 2)


def _normalised(scores: Tensor, weights: Weights) -> Tensor:
    if weights == "softmax":
        return scores.softmax(-1)
    if weights == "exp":
        return scores.exp()
    grown = (scores - scores.amax(-1, keepdim=True).detach()).exp()
    return grown / grown.square().sum(-1, keepdim=True).sqrt()
