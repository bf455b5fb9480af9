"""What tests of generation share: a real decoder small enough to run thousands of tokens."""

import pytest
import torch

from retnet.mixers.channel import GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model.config import DecoderConfig, LayerConfig
from retnet.model.decoder import Decoder


@pytest.fixture(scope="session")
def tiny_model() -> Decoder:
    """Float64, so that what ought to be equal is, but for the last bits."""
    torch.manual_seed(0)
    layer = LayerConfig(
        repeat=2,
        mixer=RetentionConfig(num_heads=2),
        channel=GLUConfig(width=24),
    )
    return Decoder(DecoderConfig(d_model=16, layers=(layer,), vocab_size=257)).double().eval()
