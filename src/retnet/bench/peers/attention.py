"""Our own decoder with softmax attention in place of retention: PyTorch's kernels, or ours."""

from functools import partial

import torch
from torch import Tensor

from retnet.bench.ours import fresh, prefiller_of, speaker_of, trainee_of
from retnet.bench.peers.missing import PeerMissing
from retnet.bench.peers.roles import Prefiller, Speaker, Trainee
from retnet.bench.sizes import ModelSize
from retnet.mixers.branch import CannotCompile
from retnet.model import Decoder, DecoderState
from retnet.ops.packed_linear import Weights

BY = "retnet with attention"
BY_NUMBA = "attention with Numba"
INSTALL = "pip install 'retnet[fast]'"


def trainee(size: ModelSize) -> Trainee:
    """Trained as `retnet train` does."""
    return trainee_of(fresh(size.attention_config()), BY)


def prefiller(size: ModelSize, dtype: torch.dtype) -> Prefiller:
    """Reads a prompt in chunks, as `retnet generate` does."""
    return prefiller_of(fresh(size.attention_config(), dtype).eval(), BY)


def speaker(size: ModelSize, dtype: torch.dtype) -> Speaker:
    """Decodes with a static cache, which is filled with random keys and values: no faster."""
    model = fresh(size.attention_config(), dtype).eval()
    weights = "float32" if dtype == torch.float32 else "bfloat16"
    return speaker_of(model, partial(_filled, model), weights, BY)


def compiled_speaker(size: ModelSize, weights: Weights) -> Speaker:
    """The same by our compiled steps; its cache is bfloat16 unless its weights are float32."""
    dtype = torch.float32 if weights == "float32" else torch.bfloat16
    model = fresh(size.attention_config(), dtype).eval()
    texts = partial(_filled, model)
    try:
        return speaker_of(model, texts, weights, BY_NUMBA, "numba")
    except CannotCompile as why:
        raise PeerMissing(BY_NUMBA, f"cannot step: {why}", INSTALL) from why


@torch.inference_mode()
def _filled(model: Decoder, context: int) -> tuple[Tensor, DecoderState]:
    """A state like that after one token, with as many random keys and values as asked for."""
    logits, one = model(torch.zeros(1, 1, dtype=torch.int64))
    random = torch.Generator().manual_seed(0)

    def filled(cache: Tensor) -> Tensor:
        B, H, _, width = cache.shape
        return torch.randn(B, H, context, width, generator=random).to(cache.dtype)

    layers = tuple(
        tuple(None if state is None else type(state)(*map(filled, state)) for state in layer)
        for layer in one.layers
    )
    return logits[:, 0], DecoderState(torch.full_like(one.position, context), layers)
