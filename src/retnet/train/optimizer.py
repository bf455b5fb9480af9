"""AdamW with weight decay where it belongs, and its state as named tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from retnet.model.initial_state import is_initial
from retnet.train.config import TrainSection


def decayed_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay is for: matrices that are no embeddings.

    A head that is tied to the embedding is an embedding.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in embeddings and not is_initial(name)
    }


def build_optimizer(model: nn.Module, config: TrainSection) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over what learns, in two groups.

    Its averages are there from the beginning, zero, so that a checkpoint can be read into them.
    """
    decayed = decayed_parameters(model)
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name in decayed].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,  # one pass over memory, on CPUs too
    )
    for parameter in groups[True] + groups[False]:
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
