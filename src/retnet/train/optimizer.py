"""AdamW with weight decay where it belongs, and its state as named tensors."""

from typing import Any

import torch
from torch import Tensor, nn

from retnet.train.config import TrainSection


def decayed_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay is for: matrices that are no embeddings.

    A head that is tied to the embedding is an embedding.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in embeddings
    }


def build_optimizer(model: nn.Module, config: TrainSection) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over all parameters, in two groups."""
    decayed = decayed_parameters(model)
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[name in decayed].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,  # one pass over memory, on CPUs too
    )


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that the optimizer remembers, as `<what>/<parameter>`; empty before the first step."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Give a new optimizer what `optimizer_tensors` returned.

    Raises:
        ValueError: a tensor belongs to no parameter or has another shape.
    """
    parameters = dict(model.named_parameters())
    state: dict[Tensor, dict[str, Any]] = {}
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition("/")
        parameter = parameters.get(name)
        if parameter is None or tensor.shape not in (parameter.shape, torch.Size()):
            raise ValueError(
                f"optimizer state {full_name} {tuple(tensor.shape)} fits no parameter of the model;"
                " the files of a checkpoint must come from the same save"
            )
        # A copy: tensors of a file lie at odd addresses, where sums may round differently.
        state.setdefault(parameter, {})[key] = tensor.to(parameter.device, copy=True)
    optimizer.state.update(state)
