"""Trainees: the decoders whose training steps are compared, and the step itself."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.bench.cases import TrainCase
from retnet.bench.gates import autocast
from retnet.bench.peers import torchscale_decoder
from retnet.model import Decoder

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

    Both competitors get this same code, so they differ in the decoder only.
    """
    random = torch.Generator().manual_seed(0)
    text = torch.randint(case.size.vocab_size, (case.B, case.T + 1), generator=random)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(case.precision):
            out: Any = model(text[:, :-1])
            logits = out[0] if isinstance(model, Decoder) else out
        loss = F.cross_entropy(logits.flatten(0, 1).float(), text[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
