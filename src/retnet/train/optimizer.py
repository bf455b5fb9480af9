"""AdamW with weight decay where it belongs, and its state as named tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from retnet.model.initial_state import is_initial
from retnet.train.config import TrainSection


def decayed_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay is for: matrices that are no embeddings.

    A head that is tied to the embedding is an embedding. What learns at a pace of its own does not
    decay.
    """
    own_pace = learning_rate_factors(model)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2
        and id(parameter) not in embeddings
        and not is_initial(name)
        and name not in own_pace
    }


def learning_rate_factors(model: nn.Module) -> dict[str, float]:
    """Factors of the learning rate by parameter, where a module's `learning_rates` gives one.

    That is a mapping from names of the module's own parameters: decays and the like, which some
    layers learn at a pace of their own.
    """
    return {
        f"{path}.{name}" if path else name: factor
        for path, module in model.named_modules()
        for name, factor in getattr(module, "learning_rates", {}).items()
    }


def build_optimizer(model: nn.Module, config: TrainSection) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over what learns.

    Its groups are the matrices that decay, all else, and what has a learning rate of its own; a
    group's `lr_factor` multiplies the schedule's rate. The averages are there from the beginning,
    zero, so that a checkpoint can be read into them.
    """
    decayed, factors = decayed_parameters(model), learning_rate_factors(model)
    groups: dict[tuple[float, float], list[Tensor]] = {
        (config.weight_decay, 1.0): [],
        (0.0, 1.0): [],
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if name in decayed else 0.0
            groups.setdefault((decay, factors.get(name, 1.0)), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": members, "weight_decay": decay, "lr_factor": factor}
            for (decay, factor), members in groups.items()
        ],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,  # one pass over memory, on CPUs too
    )
    for parameter in (p for members in groups.values() for p in members):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def optimizer_tensors(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """All that the optimizer remembers, as `<what>/<parameter>`: its own tensors, no copies."""
    return {
        f"{key}/{name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
