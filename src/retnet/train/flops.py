"""Floating point operations of training, by a formula: docs/looking-at-a-run.md explains it."""

from typing import cast

from torch import nn

from retnet.mixers import Branch
from retnet.model import Decoder


def training_flops_per_token(model: Decoder, seq_len: int) -> int:
    """Operations of a training step per token that it learns from.

    A multiplication and an addition are two. Counted are matrix products only: of each linear
    layer `2 in out` in the forward pass and as much for the gradient of its input, and of its
    weight if that is trained; of each branch what it says of itself, with twice that in the
    backward pass. What gradient checkpointing and retention's backward pass compute anew is not
    counted: it is no progress.

    Args:
        model: the decoder.
        seq_len: tokens of a row.

    Source:
        The convention of "model FLOPs utilization", arXiv:2204.02311, appendix B.
    """
    linear = sum(
        module.in_features * module.out_features * (6 if module.weight.requires_grad else 4)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    )
    branches = [branch for layer in model.layers for branch in cast(list, layer.branches)]
    return linear + 3 * sum(cast(Branch, b).flops_per_token(seq_len) for b in branches)
