"""Presets have the sizes that the paper and the official code state."""

import re

import pytest
import torch

from retnet.mixers.channel import FFNConfig, GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import PRESETS, Decoder, DecoderConfig, preset


def parts(described: DecoderConfig) -> tuple[RetentionConfig, GLUConfig | FFNConfig, int]:
    (layer,) = described.layers
    assert isinstance(layer.mixer, RetentionConfig)
    assert isinstance(layer.channel, GLUConfig | FFNConfig)
    return layer.mixer, layer.channel, layer.repeat


def size(name: str, vocab_size: int = 1000) -> tuple[int, int]:
    """Parameters with and without embeddings, counted without allocating them."""
    return size_of(preset(name, vocab_size=vocab_size))


def size_of(described: DecoderConfig) -> tuple[int, int]:
    with torch.device("meta"):
        model = Decoder(described)
    return model.num_parameters(), model.num_parameters(embeddings=False)


# published: non-embedding parameters in millions, to the digits given
PUBLISHED = {
    "paper-200m": 201.3,
    "paper-1.3b": 1208,
    "paper-2.7b": 2517,
    "paper-6.7b": 6442,
    "torchscale-medium": 203,
    "torchscale-xl": 1221,
    "torchscale-7b": 6510,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_is_the_published_one(name: str) -> None:
    """Up to norms and biases, which the published counts leave out: less than 0.4 %."""
    assert size(name)[1] / 1e6 == pytest.approx(PUBLISHED[name], rel=4e-3)


# d_model, layers, heads
PAPER = {
    "paper-200m": (1024, 16, 4),
    "paper-1.3b": (2048, 24, 8),
    "paper-2.7b": (2560, 32, 10),
    "paper-6.7b": (4096, 32, 16),
}


@pytest.mark.parametrize("name", PAPER)
def test_paper_sizes_are_those_of_its_table(name: str) -> None:
    """Heads of 256 by 512, FFN of 2 d, and the decays that its models were trained with."""
    described = preset(name, vocab_size=1000)
    mixer, channel, num_layers = parts(described)
    d, L, H = PAPER[name]
    assert (described.d_model, num_layers, mixer.num_heads) == (d, L, H)
    assert d // H == 256
    assert mixer.decay == "linspace"
    assert isinstance(channel, FFNConfig)
    assert channel.width == 2 * d
    weights = 8 * d * d + 4 * d * d  # retention and FFN
    biases = 3 * d + 2 * 2 * d + (2 * d + d)  # q, k, o; v, g; FFN
    norms = 2 * 2 * d
    assert size(name)[1] == L * (weights + biases + norms) + 2 * d


# d_model, width of values and GLU, layers, heads
TORCHSCALE = {
    "torchscale-base": (512, 864, 6, 2),
    "torchscale-medium": (1024, 1728, 16, 4),
    "torchscale-xl": (2048, 3456, 24, 8),
    "torchscale-3b": (2560, 4280, 32, 10),
    "torchscale-7b": (4096, 6912, 32, 16),
    "torchscale-13b": (5120, 8560, 40, 20),
    "torchscale-65b": (8192, 13824, 64, 32),
}


@pytest.mark.parametrize("name", TORCHSCALE)
def test_torchscale_sizes_are_those_of_the_official_code(name: str) -> None:
    """A block has 2 d^2 + 3 d V + 3 d F + 2 d numbers."""
    described = preset(name, vocab_size=1000)
    mixer, channel, num_layers = parts(described)
    d, width, L, H = TORCHSCALE[name]
    assert (described.d_model, num_layers, mixer.num_heads) == (d, L, H)
    assert (mixer.value_width, channel.width) == (width, width)
    assert isinstance(channel, GLUConfig)
    assert mixer.decay == "pow2"
    assert size(name)[1] == L * (2 * d * d + 6 * d * width + 2 * d) + d


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("small-")])
def test_small_presets_have_about_the_parameters_in_their_names(name: str) -> None:
    millions = int(re.fullmatch(r"small-(\d+)m", name)[1])  # type: ignore[index]
    assert size(name)[1] / 1e6 == pytest.approx(millions, rel=0.25)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_takes_a_vocabulary(name: str) -> None:
    for vocab_size in (1, 999):
        described = preset(name, vocab_size=vocab_size)
        assert described.vocab_size == vocab_size
        with_embeddings, without = size(name, vocab_size)
        tables = 1 if described.tie_embeddings else 2
        assert with_embeddings - without == tables * vocab_size * described.d_model
    assert preset(name).vocab_size == 0


def test_unknown_preset_is_refused_with_the_list() -> None:
    for name in ("small", "paper-7b", "small-4m-deep", ""):
        with pytest.raises(ValueError, match=rf'no preset "{name}"; choose one of small-1m, '):
            preset(name)
