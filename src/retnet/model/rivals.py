"""Fair swaps: the same decoder around another token mixer, with as many parameters.

The rule: all stays as it is but the token mixers, and the width of each layer's channel mixer,
which takes up the difference to the nearest multiple of 16. A rival that mixes channels as well
takes the place of both, twice (Hua et al. 2022, arXiv:2202.10447), and is widened itself. Without
embeddings and head, which stay, the sizes differ by less than 2 % from d_model 128 on.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from retnet.mixers import CHANNEL_MIXERS, MIXERS, BranchConfig
from retnet.model.config import DecoderConfig, LayerConfig

HEAD_SIZE = 64
"""Of rivals that have heads, as Transformers and their linear kin mostly have it."""

STEP = 16
"""Widths are multiples of this."""


def _heads(d_model: int) -> dict[str, Any]:
    if d_model % HEAD_SIZE:
        raise ValueError(
            f"d_model ({d_model}) must be a multiple of {HEAD_SIZE}, the usual size of heads; "
            "say how many there are, as in rival(config, name, num_heads=4)"
        )
    return {"num_heads": d_model // HEAD_SIZE}


FIELDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "attention": _heads,
    "linear_attention": _heads,
    "retention": _heads,
    "mean_retention": _heads,
    "shifted_retention": lambda d_model: {"retention": MIXERS["retention"](**_heads(d_model))},
}
"""What a mixer's config is given for a width where its own defaults do not say it."""

TWO_IN_ONE = ("gau", "flash")
"""Mixers that mix channels as well."""


def rival(config: DecoderConfig, name: str, *, channel: str = "", **fields: Any) -> DecoderConfig:
    """The same decoder with another token mixer and as many parameters; the module has the rule.

    Args:
        config: of the decoder to be compared with.
        name: of the mixer, from `retnet.MIXERS`.
        channel: of the channel mixer, from `retnet.CHANNEL_MIXERS`; empty: each layer keeps its
            own.
        fields: of the mixer's config, instead of what is usual.

    Raises:
        ValueError: no mixer is called so, the sizes do not fit, a layer has no channel mixer to
            widen, or the mixer takes the place of the one that is asked for.

    Example:
        >>> from retnet.model import preset
        >>> other = rival(preset("small-16m"), "attention")
        >>> other.layers[0].mixer.num_heads, other.layers[0].channel.width
        (6, 1536)
    """
    if name not in MIXERS:
        raise ValueError(f'no mixer "{name}"; choose one of {", ".join(MIXERS)}')
    if channel and channel not in CHANNEL_MIXERS:
        raise ValueError(f'no channel mixer "{channel}"; choose one of {", ".join(CHANNEL_MIXERS)}')
    if channel and name in TWO_IN_ONE:
        raise ValueError(f'"{name}" mixes channels as well; leave out channel ("{channel}")')
    given = fields or FIELDS.get(name, lambda _: {})(config.d_model)
    mixer = MIXERS[name](**given)
    swap = _both if name in TWO_IN_ONE else partial(_mixer, channel=channel)
    layers = tuple(
        layer if layer.mixer is None else swap(layer, mixer, config.d_model)
        for layer in config.layers
    )
    return replace(config, layers=layers)


def _mixer(layer: LayerConfig, mixer: BranchConfig, d_model: int, channel: str) -> LayerConfig:
    if layer.channel is None:
        raise ValueError("a layer has no channel mixer, whose width could make sizes equal")
    missing = _num_parameters(layer.mixer, d_model) - _num_parameters(mixer, d_model)
    want = _num_parameters(layer.channel, d_model) + missing
    kind = cast(Any, CHANNEL_MIXERS[channel])(width=STEP) if channel else layer.channel
    return replace(layer, mixer=mixer, channel=_as_large(kind, want, d_model))


def _both(layer: LayerConfig, mixer: BranchConfig, d_model: int) -> LayerConfig:
    want = sum(_num_parameters(branch, d_model) for branch in layer.branches)
    first = replace(cast(Any, mixer), width=STEP)
    mixer = _as_large(first, want // 2, d_model)
    return LayerConfig(mixer=mixer, repeat=2 * layer.repeat)


def _as_large(branch: BranchConfig, want: int, d_model: int) -> BranchConfig:
    """The branch at the width that brings it nearest to `want` parameters."""
    wide = cast(Any, branch)
    have = _num_parameters(branch, d_model)
    per_width = (_num_parameters(replace(wide, width=wide.width + STEP), d_model) - have) / STEP
    width = max(round((wide.width + (want - have) / per_width) / STEP), 1) * STEP
    return replace(wide, width=width)


def _num_parameters(config: BranchConfig | None, d_model: int) -> int:
    if config is None:
        return 0
    with torch.device("meta"):
        branch = cast(nn.Module, config.build(d_model))
    return sum(p.numel() for p in branch.parameters())
