"""Swapping the token mixer keeps everything else, the number of parameters too."""

from dataclasses import replace

import pytest
import torch

from retnet.mixers import CHANNEL_MIXERS, MIXERS
from retnet.mixers.attention import AttentionConfig
from retnet.mixers.channel import GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import Decoder, DecoderConfig, LayerConfig, preset, rival


def sizes(described: DecoderConfig) -> tuple[int, int]:
    """Parameters with and without embeddings, counted without allocating them."""
    with torch.device("meta"):
        model = Decoder(described)
    return model.num_parameters(), model.num_parameters(embeddings=False)


def of_heads(d_model: int, num_layers: int, width: int) -> DecoderConfig:
    """Heads of 256 by 512 and a GLU, as benchmarks have them."""
    layer = LayerConfig(
        mixer=RetentionConfig(num_heads=d_model // 256),
        channel=GLUConfig(width=width),
        repeat=num_layers,
    )
    return DecoderConfig(d_model=d_model, layers=(layer,), vocab_size=4096, tie_embeddings=True)


COMPARED = {
    "17m": of_heads(512, 4, 1024),
    "52m": of_heads(768, 6, 1536),
    **{name: preset(name, vocab_size=1000) for name in ("small-1m", "small-4m", "paper-200m")},
}


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("size", COMPARED)
def test_a_rival_has_as_many_parameters_within_two_percent(name: str, size: str) -> None:
    ours = COMPARED[size]
    other = rival(ours, name)
    for got, want in zip(sizes(other), sizes(ours), strict=True):
        assert got == pytest.approx(want, rel=0.02)
    assert replace(other, layers=ours.layers) == ours
    if name not in ("gau", "flash"):
        (layer,) = other.layers
        assert layer == replace(ours.layers[0], mixer=layer.mixer, channel=layer.channel)


def test_what_a_mixer_is_given_replaces_what_is_usual() -> None:
    other = rival(preset("small-4m"), "attention", num_heads=8, num_kv_heads=2)
    assert other.layers[0].mixer == AttentionConfig(num_heads=8, num_kv_heads=2)


@pytest.mark.parametrize("channel", CHANNEL_MIXERS)
def test_the_channel_mixer_can_be_exchanged_as_well(channel: str) -> None:
    ours = preset("small-4m", vocab_size=1000)
    other = rival(ours, "rwkv", channel=channel)
    assert type(other.layers[0].channel) is CHANNEL_MIXERS[channel]
    for got, want in zip(sizes(other), sizes(ours), strict=True):
        assert got == pytest.approx(want, rel=0.02)


def test_layers_without_a_token_mixer_stay_and_others_need_a_channel_mixer() -> None:
    mixer, channel = RetentionConfig(num_heads=2), GLUConfig(width=1024)
    only_channel = LayerConfig(channel=channel)
    ours = DecoderConfig(d_model=512, layers=(only_channel,), vocab_size=1000)
    assert rival(ours, "attention") == ours
    with pytest.raises(ValueError, match="a layer has no channel mixer, whose width could"):
        rival(replace(ours, layers=(LayerConfig(mixer=mixer),)), "attention")


def test_a_rival_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r'no mixer "mamba"; choose one of retention'):
        rival(preset("small-4m"), "mamba")
    odd = replace(preset("small-4m"), d_model=100)
    with pytest.raises(ValueError, match=r"d_model \(100\) must be a multiple of 64"):
        rival(odd, "attention")
    with pytest.raises(ValueError, match=r'no channel mixer "moe"; choose one of glu, ffn'):
        rival(preset("small-4m"), "rwkv", channel="moe")
    with pytest.raises(ValueError, match=r'"gau" mixes channels as well; leave out channel'):
        rival(preset("small-4m"), "gau", channel="glu")
