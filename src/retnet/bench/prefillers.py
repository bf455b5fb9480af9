"""Prefillers: who reads prompts, by name, and the reading itself."""

from collections.abc import Callable

import torch
from torch import Tensor

from retnet.bench.cases import PrefillCase
from retnet.bench.ours import OURS, fresh, prefiller_of
from retnet.bench.peers import attention, llama_cpp, llama_transformers
from retnet.bench.peers.roles import Prefiller
from retnet.bench.sizes import ModelSize

BUILDERS: dict[str, Callable[[ModelSize, torch.dtype], Prefiller]] = {
    OURS: lambda size, dtype: prefiller_of(fresh(size.config(), dtype).eval()),
    "attention": attention.prefiller,
    "transformers": llama_transformers.prefiller,
    "llama.cpp": lambda size, _dtype: llama_cpp.prefiller(size),
}

FEW = 33  # tokens


def build(who: str, case: PrefillCase) -> Prefiller:
    """Make a competitor, one of BUILDERS.

    Raises:
        PeerMissing: it is not installed.
    """
    return BUILDERS[who](case.size, getattr(torch, case.dtype))


def reading(who: Prefiller, case: PrefillCase) -> Callable[[], Tensor]:
    """A call that reads a prompt of random tokens, and gives the logits of the next one."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(case.size.vocab_size, (1, case.T), generator=random)
    who.read(tokens[:, :FEW])
    return lambda: who.read(tokens)
