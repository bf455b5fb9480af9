"""Small decoders for tests, with weights large enough for every part to matter."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retnet.mixers.channel import FFNConfig, GLUConfig
from retnet.mixers.retention import Retention, RetentionConfig
from retnet.model import Decoder, DecoderConfig, DecoderState, LayerConfig

V, D = 31, 16
FORMS = ("parallel", "recurrent", "chunkwise")


def config(retention: dict[str, Any] | None = None, **changes: Any) -> DecoderConfig:
    """Two layers of four heads; `retention` changes the mixer and the rest the decoder."""
    fields: dict[str, Any] = {"num_heads": 4, "value_width": 24} | (retention or {})
    mixer = RetentionConfig(**fields)
    layers = (
        LayerConfig(mixer=mixer, channel=GLUConfig(width=20)),
        LayerConfig(mixer=mixer, channel=FFNConfig(width=24, inner_norm=True)),
    )
    return replace(DecoderConfig(d_model=D, layers=layers, vocab_size=V), **changes)


def decoder(
    described: DecoderConfig | None = None,
    dtype: torch.dtype = torch.float64,
    *,
    scale: float = 1.0,
    seed: int = 0,
) -> Decoder:
    """A decoder in evaluation mode; `scale` multiplies the weights of q, k and v."""
    torch.manual_seed(seed)
    model = Decoder(described or config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, Retention):
                for projection in (module.q_proj, module.k_proj, module.v_proj):
                    projection.weight.mul_(scale)
    return model.to(dtype).eval()


def tokens(B: int, T: int, vocab_size: int = V, seed: int = 1) -> Tensor:
    return torch.randint(vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


def empty_state(model: Decoder, B: int, position: int) -> DecoderState:
    """A state that has seen nothing, at a position of choice."""
    valid = torch.zeros(B, 1, dtype=torch.bool)
    with torch.no_grad():
        _, state = model(tokens(B, 1), valid=valid)
    return state._replace(position=torch.full_like(state.position, position))


def leaves(state: DecoderState) -> list[Tensor]:
    """All tensors of a state."""
    branches = [branch for layer in state.layers for branch in layer if branch is not None]
    return [state.position, *(leaf for branch in branches for leaf in branch)]


def close(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    """Equal up to float64 rounding, relative to the largest value."""
    largest = max(1.0, want.abs().max().item()) if want.numel() else 1.0
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * largest)


def same_states(got: DecoderState, want: DecoderState, tolerance: float = 1e-10) -> None:
    for a, b in zip(leaves(got), leaves(want), strict=True):
        assert a.dtype == b.dtype
        close(a, b, tolerance)
