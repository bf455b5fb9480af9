"""Learn from examples that are made on the way: no text, no folder, no checkpoint."""

import math
from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor, nn

from retnet.model.scoring import TokenModel, example_nats
from retnet.ops.cross_entropy import IGNORED
from retnet.train.config import TrainSection
from retnet.train.loop import Diverged, derived_seed
from retnet.train.memory import keep_freed_memory
from retnet.train.optimizer import build_optimizer
from retnet.train.schedule import learning_rate

Pair = tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]
"""Tokens, and what the output at each place must be; -100 where nothing is asked."""


def train_on_examples(
    model: TokenModel, batches: Iterator[Pair], train: TrainSection, *, seed: int
) -> list[float]:
    """Take the steps that `train` would take on these batches, the last one included.

    Args:
        model: an `nn.Module`; it is changed, and left in training mode.
        batches: whole examples, one batch for each step.
        train: steps, learning rate and its schedule, betas, weight decay, clipping, precision.
        seed: of dropout.

    Returns:
        The loss of each step, nats per target.

    Raises:
        Diverged: a loss or a gradient is no number any more.
    """
    assert isinstance(model, nn.Module)
    keep_freed_memory()
    model.train()
    device = next(model.parameters()).device
    optimizer = build_optimizer(model, train)
    autocast = partial(
        torch.autocast,
        device.type,
        dtype=torch.bfloat16,
        enabled=train.precision == "bfloat16",
    )
    losses = []
    for step in range(train.steps):
        tokens, targets = (tensor.to(device) for tensor in next(batches))
        torch.manual_seed(derived_seed(seed, f"step {step}"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, step) * group["lr_factor"]
        with autocast():
            loss = example_nats(model, tokens, targets) / int((targets != IGNORED).sum())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm or math.inf)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise Diverged(
                f"loss ({loss.item()}) and gradient norm ({norm.item()}) of step {step + 1} must "
                f"be finite numbers: training diverged; lower learning_rate ({train.learning_rate})"
            )
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
