"""The learning rate: a formula of the step, so that there is no schedule to save."""

import math

from retnet.train.config import TrainSection


def learning_rate(config: TrainSection, step: int) -> float:
    """Learning rate of a step.

    It rises in a line over `warmup_steps` and reaches `learning_rate` at the last of them, then
    falls along half a cosine, along a line, or not at all, to `decay_to` of it at the last step.
    A run that is shorter than its warm-up only rises.

    Args:
        config: the run's.
        step: from 0 to `steps` - 1.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step + 1 - config.warmup_steps) / (config.steps - config.warmup_steps)
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * (config.decay_to + (1 - config.decay_to) * left)
