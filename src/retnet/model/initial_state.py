"""Documents that begin with a learned state instead of nothing: where it lives in a decoder."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from retnet.model.config import DecoderConfig, LayerConfig
from retnet.model.decoder import Decoder

FIELD = "initial_state"
"""The switch in the config of a mixer that can learn what documents begin with."""

PREFIX = "initial_"
"""How the names of its parameters begin, whatever the mixer."""


def with_initial_state(config: DecoderConfig) -> DecoderConfig:
    """The same decoder with an initial state in every mixer that can have one.

    A new one is zero, with which the decoder computes what it did without.

    Raises:
        ValueError: no mixer of it can.
    """
    layers = tuple(replace(layer, mixer=_switched_on(layer.mixer)) for layer in config.layers)
    if not any(_has_switch(layer) for layer in layers):
        raise ValueError(
            f"none of the {config.num_layers} layers has a mixer that can begin with a learned "
            "state; retention can: tune the weights instead"
        )
    return replace(config, layers=layers)


def add_initial_state(model: Decoder) -> Decoder:
    """A decoder that shares the model's weights and begins with states of its own, float32.

    They are zero where the model has none, so both compute the same until they are changed.

    Raises:
        ValueError: no mixer of the model can begin with a state.
    """
    with torch.device("meta"):
        tuned = Decoder(with_initial_state(model.config))
    device = model.embed_tokens.weight.device
    zeros = {
        name: torch.zeros(p.shape, device=device) for name, p in initial_tensors(tuned).items()
    }
    tuned.load_state_dict(zeros | model.state_dict(), assign=True)
    if model.config.tie_embeddings:
        tuned.lm_head.weight = tuned.embed_tokens.weight
    return tuned.train(model.training)


def is_initial(name: str) -> bool:
    """Whether a parameter's name is that of (a part of) an initial state."""
    return name.rpartition(".")[2].startswith(PREFIX)


def initial_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The initial states by parameter name; empty for a model that begins with nothing."""
    return {name: p for name, p in model.named_parameters() if is_initial(name)}


def _has_switch(layer: LayerConfig) -> bool:
    return layer.mixer is not None and FIELD in {f.name for f in fields(layer.mixer)}  # type: ignore[arg-type]


def _switched_on(mixer: Any) -> Any:
    if mixer is None or FIELD not in {f.name for f in fields(mixer)}:
        return mixer
    return replace(mixer, **{FIELD: True})
