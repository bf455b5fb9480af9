"""Decoders made on the device they run on: with retention, and the same with attention."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from retnet.bench.gpu.cases import ATTENTION_HEAD
from retnet.bench.record import Gate
from retnet.model import Decoder, DecoderConfig
from retnet.model.rivals import rival

OURS, ATTENTION = "retnet", "retnet with attention"
WHO = (OURS, ATTENTION)
SAME_SIZE = 0.01  # of the parameters: biases and norms differ


def configs(config: DecoderConfig) -> dict[str, DecoderConfig]:
    """Both decoders' configs, of one size.

    Raises:
        GateFailed: they differ by more than a hundredth of their parameters.
    """
    head = min(ATTENTION_HEAD, config.d_model // 2)
    both = {OURS: config, ATTENTION: rival(config, "attention", num_heads=config.d_model // head)}
    sizes = {who: num_parameters(one) for who, one in both.items()}
    differ = abs(sizes[OURS] / sizes[ATTENTION] - 1)
    Gate(differ <= SAME_SIZE, f"the decoders differ in size: {sizes}").require()
    return both


def num_parameters(config: DecoderConfig) -> int:
    """Of a decoder that is not made."""
    with torch.device("meta"):
        return Decoder(config).num_parameters()


def build(config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> Decoder:
    """A decoder with fresh weights, made in its dtype where it runs: never twice, never elsewhere.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    torch.manual_seed(0)
    with device, _default_dtype(dtype):
        return Decoder(config)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
