"""Our own decoder with softmax attention in place of retention: PyTorch's attention kernels."""

import torch
from torch import Tensor

from retnet.bench.ours import fresh, prefiller_of, speaker_of, trainee_of
from retnet.bench.peers.roles import Prefiller, Speaker, Trainee
from retnet.bench.sizes import ModelSize
from retnet.model import Decoder, DecoderState

BY = "retnet with attention"


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
    return speaker_of(model, lambda context: _filled(model, context), weights, BY)


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
