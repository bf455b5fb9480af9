"""Decode states of RetNets: a text that was begun in one program goes on in another.

Ours is S, (B, H, D_k, D_v), of keys that are rotated and scaled by D_k^-1/2. torchscale keeps
S^T / c and c^2, c_n^2 = sum of decay^j for j <= n; flash-linear-attention scales queries instead of
keys and keeps S D_k^1/2.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retnet.hub.foreign.rules import reorder_pairs
from retnet.mixers.retention import RetentionConfig, RetentionState, log_decays
from retnet.model import DecoderConfig, DecoderState
from retnet.ops.retention.normalizers import squared_decay_norm
from retnet.ops.rotation import PairLayout


def from_official(
    layers: Sequence[dict[str, Tensor]], config: DecoderConfig, position: int | None
) -> DecoderState:
    """Our state of torchscale's or syncdoth's.

    Args:
        layers: `prev_key_value` (B, H, D_v, D_k) and `scale` (H,) or (B or 1, H, 1, 1) of each.
        config: the model's.
        position: tokens that were read, which their state does not say.

    Raises:
        ValueError: layers are missing, or the scale is that of another position.
    """
    if position is None:
        raise ValueError(
            "their state does not say how many tokens it has read; give position, the length of "
            "the tokens that were passed in the last call"
        )
    mixers = _mixers(config, layers)
    states = []
    for mixer, layer in zip(mixers, layers, strict=True):
        key_value, scale = layer["prev_key_value"], layer["scale"].double()
        want = _squared(mixer, torch.tensor([position - 1]))[0]
        heads = scale.reshape(-1, mixer.num_heads)
        if position < 1 or not torch.allclose(heads, want.expand_as(heads), rtol=1e-2):
            raise ValueError(
                f"position ({position}) does not fit the state, whose scale is "
                f"{heads[0].tolist()}, and would be {want.tolist()}; count the tokens again"
            )
        S = (key_value.double() * want.sqrt()[:, None, None]).mT
        states.append(_state(S, mixer, "interleaved", key_value))
    return _decoder_state(states, position)


def to_official(state: DecoderState, config: DecoderConfig) -> list[dict[str, Tensor]]:
    """The way back; scales are (1, H, 1, 1).

    Raises:
        ValueError: rows stand at different positions, or at none: their state has one for all.
    """
    positions = state.position.unique()
    if len(positions) != 1 or positions[0] < 1:
        raise ValueError(
            f"rows have read {sorted(positions.tolist())} tokens, and their state has one number "
            "for all of them, at least 1; convert rows of one length (select_rows)"
        )
    layers = []
    for mixer, branches in zip(_mixers(config, state.layers), state.layers, strict=True):
        S = branches[0].S
        squared = _squared(mixer, positions - 1)[0][:, None, None]
        S = reorder_pairs(S, 2, mixer.pairs, "interleaved")
        key_value = (S.double() / squared.sqrt()).mT.to(S.dtype).contiguous()
        layers.append({"prev_key_value": key_value, "scale": squared[None].to(S.dtype)})
    return layers


def from_fla(state: Any, config: DecoderConfig, position: int | None) -> DecoderState:
    """Our state of a `FLACache`'s layers: dictionaries with `recurrent_state` (B, H, D_k, D_v).

    Raises:
        ValueError: layers or the position are missing.
    """
    if position is None:
        raise ValueError("give position, what the cache's get_seq_length() says")
    layers = list(state)
    states = []
    for mixer, layer in zip(_mixers(config, layers), layers, strict=True):
        S = layer["recurrent_state"]
        states.append(_state(S.double() * S.shape[2] ** -0.5, mixer, "half", S))
    return _decoder_state(states, position)


def to_fla(state: DecoderState, config: DecoderConfig) -> list[dict[str, Tensor]]:
    """The way back."""
    layers = []
    for mixer, branches in zip(_mixers(config, state.layers), state.layers, strict=True):
        S = reorder_pairs(branches[0].S, 2, mixer.pairs, "half")
        layers.append({"recurrent_state": (S.double() * S.shape[2] ** 0.5).to(S.dtype)})
    return layers


def _mixers(config: DecoderConfig, layers: Sequence[Any]) -> list[RetentionConfig]:
    mixers = [
        branches[0] for branches in config.branches if isinstance(branches[0], RetentionConfig)
    ]
    if len(mixers) != config.num_layers or len(layers) != len(mixers):
        raise ValueError(
            f"the state has {len(layers)} layers and the model {config.num_layers}, of which "
            f"{len(mixers)} have retention; they must be the same: give the state of this model"
        )
    return mixers


def _squared(mixer: RetentionConfig, positions: Tensor) -> Tensor:
    """c_n^2, (rows, H), float64."""
    log_decay = log_decays(mixer.decay, mixer.num_heads)
    return squared_decay_norm(positions[:, None], log_decay)[:, 0]


def _state(
    S: Tensor, mixer: RetentionConfig, pairs: PairLayout, stored: Tensor
) -> tuple[RetentionState, None]:
    exact = torch.float64 if stored.dtype == torch.float64 else torch.float32
    return RetentionState(reorder_pairs(S, 2, pairs, mixer.pairs).to(exact).contiguous()), None


def _decoder_state(states: Sequence[tuple[RetentionState, None]], position: int) -> DecoderState:
    batch = len(states[0][0].S)
    return DecoderState(torch.full((batch,), position, dtype=torch.int64), tuple(states))
