"""Learn from examples that are made on the way: no text, no folder, no checkpoint."""

import math
from collections.abc import Iterator
from functools import partial

import torch

from retnet.data import Batch
from retnet.model import Decoder
from retnet.ops.cross_entropy import IGNORED
from retnet.train.config import TrainSection
from retnet.train.loop import Diverged, accumulate_gradients, derived_seed
from retnet.train.optimizer import build_optimizer
from retnet.train.schedule import learning_rate


def train_on_examples(
    model: Decoder, batches: Iterator[Batch], train: TrainSection, *, seed: int
) -> list[float]:
    """Take the steps that `train` would take on these batches, the last one included.

    Args:
        model: is changed, and left in training mode.
        batches: one for each step; a target stands at the place of the output that must be it.
        train: steps, learning rate and its schedule, betas, weight decay, clipping, precision.
        seed: of dropout.

    Returns:
        The loss of each step, nats per target.

    Raises:
        Diverged: a loss or a gradient is no number any more.
    """
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
        batch = Batch(*(tensor.to(device) for tensor in next(batches)))
        torch.manual_seed(derived_seed(seed, f"step {step}"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, step) * group["lr_factor"]
        num_targets = int((batch.targets != IGNORED).sum())
        loss, _ = accumulate_gradients(model, [(batch, None)], num_targets, autocast)
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
