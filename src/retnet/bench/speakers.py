"""Speakers: who decodes, by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from retnet.bench.ours import OURS, Texts, fresh, speaker_of
from retnet.bench.peers import PeerMissing, attention, llama_cpp, llama_transformers, torchscale
from retnet.bench.peers.roles import Speaker
from retnet.bench.session import Session
from retnet.bench.sizes import ModelSize
from retnet.model import Decoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EXTRA = 64  # tokens that a text may go on for


class Room(NamedTuple):
    """What a speaker must be ready for: the longest text, and the most rows."""

    tokens: int
    rows: int


RIVALS: dict[str, Callable[[ModelSize, Room], Speaker]] = {
    **{
        f"{name} {said}": lambda size, _room, build=build, dtype=dtype: build(size, dtype)
        for name, build in (
            ("attention", attention.speaker),
            ("transformers", llama_transformers.speaker),
            ("torchscale", torchscale.speaker),
        )
        for said, dtype in DTYPES.items()
    },
    "llama.cpp": lambda size, room: llama_cpp.speaker(size, room.tokens + EXTRA, room.rows),
}


def fresh_models(size: ModelSize) -> dict[str, Decoder]:
    """Our decoder in each dtype."""
    return {said: fresh(size.config(), dtype).eval() for said, dtype in DTYPES.items()}


def our_speakers(models: Mapping[str, Decoder]) -> dict[str, Speaker]:
    """Ours; what the last of them reads is read for all, for states are float32 in every dtype."""
    texts = Texts(list(models.values())[-1])
    return {f"{OURS} {said}": speaker_of(model, texts) for said, model in models.items()}


def is_ours(name: str) -> bool:
    """Whether a name is one of `our_speakers`."""
    return name.startswith(f"{OURS} ")


def rival_speakers(
    names: Sequence[str], size: ModelSize, room: Room, session: Session
) -> dict[str, Speaker]:
    """Those of RIVALS that are installed; the session notes the others."""
    found = {}
    for name in names:
        try:
            found[name] = RIVALS[name](size, room)
        except PeerMissing as missing:
            session.skip(missing)
    return found
