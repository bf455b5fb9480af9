"""Configs refuse what makes no sense, with a value, a rule and a remedy."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from model.small import config
from retnet.mixers import CHANNEL_MIXERS, MIXERS
from retnet.mixers.channel import GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import Decoder, DecoderConfig, LayerConfig
from retnet.model.config import branch_name

MIXER, CHANNEL = RetentionConfig(num_heads=2), GLUConfig(width=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, r"d_model \(0\) must be at least 1"),
        ({"layers": ()}, r"num_layers \(0\) must be at least 1"),
        ({"vocab_size": -1}, r"vocab_size \(-1\) must not be negative"),
        ({"dropout": 1.0}, r"dropout \(1.0\) is a probability and must be in \[0, 1\)"),
        ({"dropout": -0.1}, r"dropout \(-0.1\) is a probability"),
        ({"drop_path": 2.0}, r"drop_path \(2.0\) is a probability"),
        ({"drop_path": float("nan")}, r"drop_path \(nan\) is a probability"),
    ],
)
def test_decoder_config_refuses(changes: dict[str, Any], message: str) -> None:
    """T15."""
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "a layer has neither mixer nor channel; give it at least one"),
        ({"mixer": MIXER, "repeat": 0}, r"repeat \(0\) must be at least 1; delete the layer"),
    ],
)
def test_layer_config_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerConfig(**given)


def test_widths_that_do_not_divide_are_refused_when_the_model_is_built() -> None:
    """T15: the official defaults do not divide and fail in the forward pass."""
    described = DecoderConfig(d_model=768, layers=(LayerConfig(mixer=MIXER),), vocab_size=9)
    bad = replace(MIXER, num_heads=3, value_width=1280)
    with pytest.raises(ValueError, match=r"value_width \(1280\) must be a multiple of num_heads"):
        Decoder(replace(described, layers=(LayerConfig(mixer=bad),)))


def test_configs_are_frozen_and_take_keywords_only() -> None:
    with pytest.raises(FrozenInstanceError):
        config().d_model = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        DecoderConfig(16, (LayerConfig(mixer=MIXER),))  # type: ignore[call-arg,misc]


def test_repeats_are_counted_and_unrolled() -> None:
    layers = (LayerConfig(mixer=MIXER, repeat=2), LayerConfig(mixer=MIXER, channel=CHANNEL))
    described = config(layers=layers)
    assert described.num_layers == 3
    assert described.branches == ((MIXER,), (MIXER,), (MIXER, CHANNEL))


def test_branch_names_are_the_registries() -> None:
    assert branch_name(MIXER) == "retention"
    assert branch_name(CHANNEL) == "glu"
    assert not MIXERS.keys() & CHANNEL_MIXERS.keys()
    with pytest.raises(ValueError, match="DecoderConfig is in no registry; add a line to retnet"):
        branch_name(config())


def test_equal_configs_are_equal_and_hash_alike() -> None:
    assert config() == config()
    assert hash(config()) == hash(config())
    assert config() != config(d_model=32)
