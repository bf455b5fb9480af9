"""Trainees: the decoders whose training steps are compared, and the step itself."""

from collections.abc import Callable

import torch
from torch import Tensor

from retnet.bench.cases import TrainCase
from retnet.bench.gates import autocast
from retnet.bench.ours import OURS, fresh, trainee_of
from retnet.bench.peers import attention, llama_transformers, torchscale
from retnet.bench.peers.roles import Trainee
from retnet.train import keep_freed_memory

FEW = 33  # tokens; with one to predict

BUILDERS: dict[str, Callable[[TrainCase], Trainee]] = {
    OURS: lambda case: trainee_of(fresh(case.size.config())),
    "torchscale": lambda case: torchscale.trainee(case.size, case.peer_chunk),
    "transformers": lambda case: llama_transformers.trainee(case.size),
    "attention": lambda case: attention.trainee(case.size),
}


def build(who: str, case: TrainCase) -> Trainee:
    """Make a competitor, one of BUILDERS.

    Raises:
        PeerMissing: it is not installed.
    """
    return BUILDERS[who](case)


def training_step(who: Trainee, case: TrainCase) -> Callable[[], Tensor]:
    """One step on random tokens; returns its loss.

    The loss is each one's own; optimizer and the allocator's settings are the same for all. The
    optimizer's moments exist after this call, so that the first step costs what the others do.
    """
    keep_freed_memory()
    random = torch.Generator().manual_seed(0)
    text = torch.randint(case.size.vocab_size, (case.B, case.T + 1), generator=random)
    optimizer = torch.optim.AdamW(who.model.parameters(), lr=1e-4, fused=True)

    def step(text: Tensor = text) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(case.precision):
            loss = who.loss(text[:, :-1], text[:, 1:])
        loss.backward()
        optimizer.step()
        return loss.detach()

    step(text[:, :FEW])
    return step
