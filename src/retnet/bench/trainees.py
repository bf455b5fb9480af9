"""Trainees: the decoders whose training steps are compared, and the step itself."""

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.bench.cases import TrainCase
from retnet.bench.gates import autocast
from retnet.bench.peers import torchscale_decoder
from retnet.model import Decoder
from retnet.model.scoring import score
from retnet.train import keep_freed_memory

OURS, TORCHSCALE = "retnet", "torchscale"


def build(who: str, case: TrainCase) -> nn.Module:
    """Make a competitor: `retnet` or `torchscale`.

    Raises:
        PeerMissing: it is not installed.
    """
    torch.manual_seed(0)
    if who == OURS:
        return Decoder(case.size.config())
    return torchscale_decoder(**asdict(case.size), chunk_size=case.peer_chunk)


def training_step(model: nn.Module, case: TrainCase) -> Callable[[], Tensor]:
    """One step on random tokens; returns its loss.

    Ours computes its loss as `retnet train` does, the peer's with PyTorch's cross-entropy; the
    optimizer and the allocator's settings are the same for both.
    """
    keep_freed_memory()
    random = torch.Generator().manual_seed(0)
    text = torch.randint(case.size.vocab_size, (case.B, case.T + 1), generator=random)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        inputs, targets = text[:, :-1], text[:, 1:]
        with autocast(case.precision):
            if isinstance(model, Decoder):
                loss = score(model, inputs, targets).nats / targets.numel()
            else:
                loss = F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
