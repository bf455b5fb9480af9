"""Named sizes: the paper's, the official code's, and a small family of our own."""

from dataclasses import replace
from typing import Any

from retnet.mixers import CHANNEL_MIXERS, MIXERS
from retnet.model.config import DecoderConfig, LayerConfig

# name -> (d_model, layers, heads); arXiv:2307.08621 table 7, heads of D_k = 256
PAPER = {
    "200m": (1024, 16, 4),
    "1.3b": (2048, 24, 8),
    "2.7b": (2560, 32, 10),
    "6.7b": (4096, 32, 16),
}

# name -> (d_model, value and GLU width, layers, heads); microsoft/torchscale's fairseq presets
TORCHSCALE = {
    "base": (512, 864, 6, 2),
    "medium": (1024, 1728, 16, 4),
    "xl": (2048, 3456, 24, 8),
    "3b": (2560, 4280, 32, 10),
    "7b": (4096, 6912, 32, 16),
    "13b": (5120, 8560, 40, 20),
    "65b": (8192, 13824, 64, 32),
}

# name -> (d_model, layers, heads, value width, GLU width); sizes without embeddings
SMALL = {
    "small-1m": (128, 4, 2, 256, 384),
    "small-4m": (256, 4, 4, 512, 512),
    "small-16m": (384, 7, 6, 768, 1024),
    "small-50m": (640, 8, 10, 1280, 1792),
    "small-125m": (896, 10, 14, 1792, 2432),
}

# name -> (d_model, layers); arXiv:2305.13048 table 2, with channel mixing of 4 D
RWKV = {
    "169m": (768, 12),
    "430m": (1024, 24),
    "1.5b": (2048, 24),
    "3b": (2560, 32),
    "7b": (4096, 32),
    "14b": (5120, 40),
}

PRESETS = (
    *SMALL,
    *(f"paper-{name}" for name in PAPER),
    *(f"torchscale-{name}" for name in TORCHSCALE),
    *(f"rwkv-{name}" for name in RWKV),
)


def preset(name: str, vocab_size: int = 0) -> DecoderConfig:
    """The decoder config of a preset.

    `paper-*` are as the paper trained them: LayerNorm, biases, GELU FFN of 2 D, values of 2 D,
    decays of the linspace rule. `torchscale-*` are the official code's: RMSNorm, GLU, decays of
    the pow2 rule. `small-*` are ours, for CPUs and single GPUs. `rwkv-*` are RWKV-4 as released,
    with vocabularies of 50,277 or 65,536 tokens.

    Raises:
        ValueError: there is no such preset; the message lists those there are.
    """
    family, _, size = name.partition("-")
    if family == "paper" and size in PAPER:
        config = _paper(*PAPER[size])
    elif family == "torchscale" and size in TORCHSCALE:
        config = _torchscale(*TORCHSCALE[size])
    elif name in SMALL:
        config = _small(*SMALL[name])
    elif family == "rwkv" and size in RWKV:
        config = _rwkv(*RWKV[size])
    else:
        raise ValueError(f'no preset "{name}"; choose one of {", ".join(PRESETS)}')
    return replace(config, vocab_size=vocab_size)


def _paper(d_model: int, num_layers: int, num_heads: int) -> DecoderConfig:
    retention = {
        "num_heads": num_heads,
        "decay": "linspace",
        "theta": "linspace",
        "pairs": "interleaved",
        "head_norm": "layer",
        "norm_eps": 1e-5,
        "bias": True,
    }
    return DecoderConfig(
        d_model=d_model,
        layers=(_layer("retention", retention, "ffn", {"width": 2 * d_model}, num_layers),),
        norm="layer",
        norm_eps=1e-5,
        tie_embeddings=True,
        embed_scale=True,
        dropout=0.1,
    )


def _torchscale(d_model: int, width: int, num_layers: int, num_heads: int) -> DecoderConfig:
    retention = {
        "num_heads": num_heads,
        "value_width": width,
        "theta": "linspace",
        "pairs": "interleaved",
    }
    return DecoderConfig(
        d_model=d_model,
        layers=(_layer("retention", retention, "glu", {"width": width}, num_layers),),
        embed_scale=True,
    )


def _small(
    d_model: int, num_layers: int, num_heads: int, value_width: int, glu_width: int
) -> DecoderConfig:
    retention = {"num_heads": num_heads, "value_width": value_width, "decay": "linspace"}
    return DecoderConfig(
        d_model=d_model,
        layers=(_layer("retention", retention, "glu", {"width": glu_width}, num_layers),),
        tie_embeddings=True,
        embed_scale=True,
    )


def _rwkv(d_model: int, num_layers: int) -> DecoderConfig:
    return DecoderConfig(
        d_model=d_model,
        layers=(_layer("rwkv", {}, "rwkv_ffn", {"width": 4 * d_model}, num_layers),),
        norm="layer",
        norm_eps=1e-5,
        embed_norm=True,
        init="rwkv",
    )


def _layer(
    mixer: str,
    mixer_fields: dict[str, Any],
    channel: str,
    channel_fields: dict[str, Any],
    repeat: int,
) -> LayerConfig:
    return LayerConfig(
        mixer=MIXERS[mixer](**mixer_fields),
        channel=CHANNEL_MIXERS[channel](**channel_fields),
        repeat=repeat,
    )
