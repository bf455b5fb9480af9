"""What tests of sessions share: a small model and states that a number makes."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from retnet.hub import from_dict
from retnet.model import Decoder, DecoderConfig, DecoderState
from retnet.model.state import state_tensors, with_tensors
from retnet.serve.sessions import (
    Identity,
    SessionStore,
    Turn,
)


class Place(NamedTuple):
    """Where a store is, and how to get at its states behind its back."""

    address: Path | str
    states: Callable[[], set[str]]
    data: Callable[[str], bytes]
    put: Callable[[str, bytes], object]
    lose: Callable[[str], object]


LAYER = {"mixer": {"name": "retention", "num_heads": 2}, "channel": {"name": "glu", "width": 8}}
CONFIG = {"d_model": 8, "layers": [LAYER], "vocab_size": 16}


def small_model(seed: int = 0, **changes: object) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(from_dict(DecoderConfig, {**CONFIG, **changes})).eval()


def made_state(identity: Identity, number: int) -> DecoderState:
    """A state that depends on a number alone."""
    random = torch.Generator().manual_seed(number)
    tensors = {
        name: torch.randn(tensor.shape, generator=random).to(tensor.dtype)
        for name, tensor in state_tensors(identity.template).items()
    }
    tensors["position"] = torch.tensor([number + 1])
    return with_tensors(identity.template, tensors)


def made_turn(identity: Identity, number: int) -> Turn:
    """A turn of one token that depends on a number alone."""
    return Turn(state=made_state(identity, number), tokens=[number % 16], meta={"number": number})


def equal_states(a: DecoderState, b: DecoderState) -> bool:
    """To the bit."""
    ours, theirs = state_tensors(a), state_tensors(b)
    return ours.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype
        and tensor.shape == theirs[name].shape
        and tensor.contiguous().view(torch.uint8).equal(theirs[name].contiguous().view(torch.uint8))
        for name, tensor in ours.items()
    )


def commit_turns(
    store: SessionStore, identity: Identity, num: int, name: str = "text"
) -> list[int]:
    """Begin a session with turns of one token each; their versions."""
    versions: list[int] = []
    for number in range(num):
        before = versions[-1] if versions else None
        versions.append(store.commit(name, "", made_turn(identity, number), before))
    return versions
