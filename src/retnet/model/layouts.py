"""Layouts: which kind of layer stands where, for stacks whose layers are not all alike."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from retnet.mixers import MIXERS
from retnet.model.config import DecoderConfig, LayerConfig, branch_name

FAR = 0.75
"""Share of a text in training that the window layers together may see."""


def hwfa(config: DecoderConfig, train_len: int) -> DecoderConfig:
    """Hybrid window-full attention: windows with RoPE, then one full layer without positions.

    The first L - 1 layers see `(w - 1) (L - 1) + 1 <= 3/4 N` tokens together, w the largest such
    window; nothing in them grows with the text, and so no position is new to them in longer texts.
    The last layer finds what is far away, by content alone, with scores times ln n / ln N.

    Args:
        config: of a decoder whose token mixers are attention; heads and biases stay.
        train_len: N, tokens of a text in training.

    Raises:
        ValueError: a mixer is another, or there are too few layers or tokens.

    Source:
        Su 2023, kexue.fm/archives/9603.

    Example:
        >>> from retnet.model import preset, rival
        >>> config = hwfa(rival(preset("small-16m"), "attention"), train_len=512)
        >>> [(layer.repeat, layer.mixer.window) for layer in config.layers]
        [(6, 64), (1, None)]
    """
    L = config.num_layers
    if L < 2:
        raise ValueError(f"the decoder has {L} layer; windows and a full layer need at least 2")
    window = int(FAR * train_len - 1) // (L - 1) + 1
    if FAR * train_len < 2 * (L - 1) + 1:
        raise ValueError(
            f"train_len ({train_len}) is too short for {L} layers: their windows together may see "
            f"{FAR} of it, and each must see at least 2 tokens; raise one or lower the other"
        )
    near = {"position": "rope", "window": window}
    full = {"position": "none", "log_n": "always", "train_len": train_len}
    return _with_fields(config, lambda i: full if i == L - 1 else near)


def hwfa2(config: DecoderConfig, train_len: int, full_layers: int = 1) -> DecoderConfig:
    """The second form: windows of 3 N / L tokens, and one or two full layers in the middle.

    All layers have RoPE. To read longer texts than in training, give the full layers a `rerope`.

    Args:
        config: of a decoder whose token mixers are attention; heads and biases stay.
        train_len: N, tokens of a text in training.
        full_layers: at L/2, or at L/3 and 2 L/3.

    Raises:
        ValueError: a mixer is another, or there are too few layers or tokens.

    Source:
        Su 2023, kexue.fm/archives/9731.
    """
    L = config.num_layers
    if full_layers not in (1, 2) or full_layers + 2 > L:
        raise ValueError(
            f"full_layers ({full_layers}) must be 1 or 2 and stand between windows, and the "
            f"decoder has {L} layers; change one of them"
        )
    window = 3 * train_len // L
    if window < 2:
        raise ValueError(
            f"train_len ({train_len}) is too short for {L} layers: windows of 3 N / L must see at "
            "least 2 tokens; raise one or lower the other"
        )
    places = {i * L // (full_layers + 1) for i in range(1, full_layers + 1)}
    near = {"position": "rope", "window": window}
    return _with_fields(config, lambda i: {"position": "rope"} if i in places else near)


PLAIN: dict[str, Any] = {"window": None, "sinks": 0, "log_n": "none", "train_len": None}


def _with_fields(config: DecoderConfig, fields: Callable[[int], dict[str, Any]]) -> DecoderConfig:
    """Attention of each layer with other fields; equal neighbours are one entry."""
    layers: list[LayerConfig] = []
    flat = [layer for layer in config.layers for _ in range(layer.repeat)]
    for index, layer in enumerate(flat):
        mixer: Any = layer.mixer
        if not isinstance(mixer, MIXERS["attention"]):
            kind = "nothing" if mixer is None else branch_name(mixer)
            raise ValueError(
                f"layer {index} mixes tokens by {kind}; the layout is one of attention: take "
                'rival(config, "attention") first'
            )
        plain: Any = mixer  # what isinstance leaves is a BranchConfig
        new = replace(layer, mixer=replace(plain, **PLAIN | fields(index)), repeat=1)
        if layers and replace(layers[-1], repeat=1) == new:
            layers[-1] = replace(new, repeat=layers[-1].repeat + 1)
        else:
            layers.append(new)
    return replace(config, layers=tuple(layers))
