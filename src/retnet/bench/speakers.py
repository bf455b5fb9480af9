"""Speakers: who decodes, by name."""

from collections.abc import Callable, Container, Mapping
from typing import NamedTuple, get_args

import torch

from retnet.bench.ours import OURS, WITHOUT_NUMBA, Texts, speaker_of
from retnet.bench.peers import PeerMissing, attention, llama_cpp, llama_transformers, torchscale
from retnet.bench.peers.roles import Speaker
from retnet.bench.session import Session
from retnet.bench.sizes import ModelSize
from retnet.mixers.branch import CannotCompile
from retnet.model import Decoder
from retnet.model.steps import Kernels, pack
from retnet.ops.packed_linear import Weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
EXTRA = 140  # tokens that a text may go on for


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
    **{
        f"compiled attention {kind}": lambda size, _room, kind=kind: attention.compiled_speaker(
            size, kind
        )
        for kind in WEIGHTS
    },
    "llama.cpp": lambda size, room: llama_cpp.speaker(size, room.tokens + EXTRA, room.rows),
}


def our_speakers(model: Decoder, session: Session) -> dict[str, Speaker]:
    """Ours, with weights of each kind, compiled and by PyTorch alone.

    States are float32 with all of them, so what one has read is read for all.
    """
    texts = Texts(pack(model, "bfloat16", "torch"))
    found = {}
    ways: tuple[tuple[str, Kernels], ...] = ((OURS, "numba"), (WITHOUT_NUMBA, "torch"))
    for by, kernels in ways:
        for kind in WEIGHTS:
            try:
                found[f"{by} {kind}"] = speaker_of(model, texts, kind, by, kernels)
            except CannotCompile as why:
                session.skip(f"no compiled steps: {why}")
    return found


def has_compiled(names: Container[str]) -> bool:
    """Whether compiled steps are among `our_speakers`: all kinds of weights, or none."""
    return f"{OURS} {WEIGHTS[0]}" in names


def is_ours(name: str) -> bool:
    """Whether a name is one of `our_speakers`."""
    return name.startswith(f"{OURS} ")


def rival_speakers(
    rooms: Mapping[str, Room], size: ModelSize, session: Session
) -> dict[str, Speaker]:
    """Those of RIVALS that are installed, each with its room; the session notes the others."""
    found = {}
    for name, room in rooms.items():
        try:
            found[name] = RIVALS[name](size, room)
        except PeerMissing as missing:
            session.skip(missing)
    return found
