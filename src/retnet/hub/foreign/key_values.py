"""Decode states of attention: the keys and values that transformers keeps."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from retnet.hub.foreign.rules import reorder_pairs
from retnet.mixers.attention import AttentionConfig
from retnet.model import DecoderConfig, DecoderState
from retnet.ops.attention import AttentionState, WindowState

Pair = tuple[Tensor, Tensor]


def from_transformers(cache: Any, config: DecoderConfig, position: int | None) -> DecoderState:
    """Our state of a `DynamicCache`, or of keys and values for each layer, (B, H_kv, T, D_k).

    Args:
        cache: after a call; its keys are rotated. Rows must have no padding.
        config: the model's.
        position: tokens read, `cache.get_seq_length()`; may be None if there is no window.

    Raises:
        ValueError: layers are missing, or the position does not fit them.
    """
    pairs = _pairs(cache)
    mixers = _mixers(config, pairs)
    if position is None:
        if any(mixer.window for mixer in mixers):
            raise ValueError(
                "a sliding window does not say how many tokens it has read; give position, what "
                "the cache's get_seq_length() says"
            )
        position = pairs[0][0].shape[2]
    states = []
    for mixer, (k, v) in zip(mixers, pairs, strict=True):
        kept = position if mixer.window is None else min(position, mixer.window - 1)
        if k.shape[2] != kept or v.shape[2] != kept:
            raise ValueError(
                f"the cache has {k.shape[2]} keys, and would have {kept} after {position} tokens; "
                "give the number of tokens that it has read"
            )
        if mixer.position == "rope":
            k = reorder_pairs(k, 3, "half", mixer.pairs)
        if mixer.window is None:
            states.append((AttentionState(k, v), None))
        else:  # the most recent last; the oldest slot is for a token that no later one sees
            k, v = (F.pad(x, (0, 0, mixer.window - kept, 0)) for x in (k, v))
            states.append((WindowState(k, v), None))
    batch = len(pairs[0][0])
    return DecoderState(torch.full((batch,), position, dtype=torch.int64), tuple(states))


def to_transformers(state: DecoderState, config: DecoderConfig) -> list[Pair]:
    """The way back: keys and values for each layer, which `DynamicCache(pairs)` takes.

    Raises:
        ValueError: rows have read different numbers of tokens: their caches have one for all.
    """
    positions = state.position.unique().tolist()
    if len(positions) != 1:
        raise ValueError(
            f"rows have read {positions} tokens, and their cache has as many keys for all; "
            "convert rows of one length (select_rows)"
        )
    pairs = []
    for mixer, branches in zip(_mixers(config, state.layers), state.layers, strict=True):
        kept = positions[0] if mixer.window is None else min(positions[0], mixer.window - 1)
        held = branches[0]
        assert isinstance(held, AttentionState | WindowState)
        k, v = (x[:, :, x.shape[2] - kept :].contiguous() for x in held)
        if mixer.position == "rope":
            k = reorder_pairs(k, 3, mixer.pairs, "half")
        pairs.append((k, v))
    return pairs


def _pairs(cache: Any) -> Sequence[Pair]:
    layers: Iterable[Any] = getattr(cache, "layers", cache)
    return [
        (layer.keys, layer.values) if hasattr(layer, "keys") else (layer[0], layer[1])
        for layer in layers
    ]


def _mixers(config: DecoderConfig, layers: Sequence[Any]) -> list[AttentionConfig]:
    mixers = [b[0] for b in config.branches if isinstance(b[0], AttentionConfig)]
    if len(mixers) != config.num_layers or len(layers) != len(mixers):
        raise ValueError(
            f"the state has {len(layers)} layers and the model {config.num_layers}, of which "
            f"{len(mixers)} have attention; they must be the same: give the state of this model"
        )
    if any(mixer.rereads or mixer.sinks for mixer in mixers):
        raise ValueError(
            "keys of this model are kept unrotated, or with sinks, as transformers does not; its "
            "states are not converted"
        )
    return mixers
