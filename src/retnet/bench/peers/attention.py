"""Our own decoder with softmax attention in place of retention: PyTorch's attention kernels."""

from dataclasses import replace

import torch
from torch import Tensor

from retnet.bench.ours import fresh, prefiller_of, speaker_of, trainee_of
from retnet.bench.peers.roles import Prefiller, Speaker, Trainee
from retnet.bench.sizes import ModelSize
from retnet.mixers import MIXERS
from retnet.mixers.channel import GLUConfig
from retnet.model import Decoder, DecoderConfig, DecoderState, LayerConfig

BY = "retnet with attention"


def trainee(size: ModelSize) -> Trainee:
    """Trained as `retnet train` does."""
    return trainee_of(fresh(config(size)), BY)


def prefiller(size: ModelSize, dtype: torch.dtype) -> Prefiller:
    """Reads a prompt in chunks, as `retnet generate` does."""
    return prefiller_of(fresh(config(size), dtype).eval(), BY)


def speaker(size: ModelSize, dtype: torch.dtype) -> Speaker:
    """Decodes with a static cache, which is filled with random keys and values: no faster."""
    model = fresh(config(size), dtype).eval()
    return speaker_of(model, lambda context: _filled(model, context), BY)


def config(size: ModelSize) -> DecoderConfig:
    """The decoder with as many parameters as ours: narrower layers of attention, a wider GLU."""
    layer = LayerConfig(
        mixer=MIXERS["attention"](num_heads=size.attention_heads),  # pyright: ignore[reportCallIssue]
        channel=GLUConfig(width=size.attention_ffn_width),
        repeat=size.num_layers,
    )
    return replace(size.config(), layers=(layer,))


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
