"""Decode states of RWKV-4: what pip's `rwkv`, rwkv.cpp and transformers keep of a text.

All keep five vectors for each layer: the last tokens that time mixing and channel mixing read, and
WKV's sums a = aa e^pp, b = bb e^pp. Ours are a / b and log b, which do not depend on pp.

| program | form | order |
|---|---|---|
| pip `rwkv` | list of 5 L vectors | att_x, aa, bb, pp, ffn_x |
| BlinkDL's scripts, rwkv.cpp | (5 L, D), or flat | ffn_x, att_x, aa, bb, pp |
| transformers | list of 5, each (B, D, L) | ffn_x, att_x, aa, bb, pp |
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from retnet.mixers.rwkv import RWKVConfig, RWKVState
from retnet.mixers.rwkv_channel import RWKVFFNConfig, RWKVFFNState
from retnet.model import DecoderConfig, DecoderState
from retnet.ops.wkv import WKVState, from_scaled_sums, to_scaled_sums


class _Vectors(NamedTuple):
    """Of a layer, (B, width) each."""

    ffn_x: Tensor
    att_x: Tensor
    aa: Tensor
    bb: Tensor
    pp: Tensor


def from_pip(state: Sequence[Tensor], config: DecoderConfig, position: int | None) -> DecoderState:
    """Our state of a list of 5 L vectors, which are of one text."""
    _check_count(len(state), config, "vectors")
    layers = []
    for first in range(0, len(state), 5):
        att_x, aa, bb, pp, ffn_x = (x.reshape(1, -1) for x in state[first : first + 5])
        layers.append(_Vectors(ffn_x, att_x, aa, bb, pp))
    return _ours(layers, config, position)


def to_pip(state: DecoderState, config: DecoderConfig) -> list[Tensor]:
    """The way back; `att_x` and `ffn_x` are to be in the dtype in which the package computes."""
    _refuse_batch(state)
    found: list[Tensor] = []
    for ffn_x, att_x, aa, bb, pp in _theirs(state, config):
        found += [x[0] for x in (att_x, aa, bb, pp, ffn_x)]
    return found


def from_rows(state: Tensor, config: DecoderConfig, position: int | None) -> DecoderState:
    """Our state of a matrix of 5 L rows, or of its numbers one after another."""
    if state.ndim == 1:
        state = state.view(5 * config.num_layers, -1)
    _check_count(len(state), config, "rows")
    layers = [_Vectors(*rows[:, None]) for rows in state.split(5)]
    return _ours(layers, config, position)


def to_rows(state: DecoderState, config: DecoderConfig) -> Tensor:
    """The way back, float32."""
    _refuse_batch(state)
    return torch.cat([x.float() for layer in _theirs(state, config) for x in layer])


def from_transformers(
    state: Sequence[Tensor], config: DecoderConfig, position: int | None
) -> DecoderState:
    """Our state of what the model returns as `state`."""
    if len(state) != 5 or any(x.shape[2] != config.num_layers for x in state):
        raise ValueError(
            f"the state has {len(state)} tensors, of {[x.shape[-1] for x in state]} layers; it "
            f"must have 5, each (B, D, {config.num_layers}): give the state of this model"
        )
    layers = [_Vectors(*(x[:, :, n] for x in state)) for n in range(config.num_layers)]
    return _ours(layers, config, position)


def to_transformers(state: DecoderState, config: DecoderConfig) -> list[Tensor]:
    """The way back."""
    return [torch.stack(xs, 2) for xs in zip(*_theirs(state, config), strict=True)]


def _ours(layers: Sequence[_Vectors], config: DecoderConfig, position: int | None) -> DecoderState:
    states = []
    for ffn_x, att_x, aa, bb, pp in layers:
        sums = from_scaled_sums(aa, bb, pp)
        att_x, ffn_x = (x.to(sums.mean.dtype) for x in (att_x, ffn_x))
        states.append((RWKVState(att_x, *sums), RWKVFFNState(ffn_x)))
    _check_layers(config)
    # They do not count tokens, and RWKV does not ask: all that matters is whether there were any.
    seen = states[0][0].seen.long()
    return DecoderState(seen if position is None else seen * position, tuple(states))


def _theirs(state: DecoderState, config: DecoderConfig) -> list[_Vectors]:
    _check_layers(config)
    layers = []
    for time, channel in state.layers:
        assert isinstance(time, RWKVState)
        sums = to_scaled_sums(WKVState(*time[1:]))
        layers.append(_Vectors(channel.shift, time.shift, *sums))
    return layers


def _check_layers(config: DecoderConfig) -> None:
    for time, channel in config.branches:
        shifts = (
            (isinstance(time, RWKVConfig) and isinstance(channel, RWKVFFNConfig))
            and time.token_shift
            and channel.token_shift
        )
        if not shifts:
            raise ValueError("states of RWKV-4 belong to a model of rwkv and rwkv_ffn layers")


def _check_count(found: int, config: DecoderConfig, what: str) -> None:
    want = 5 * config.num_layers
    if found != want:
        raise ValueError(
            f"the state has {found} {what}; it must have {want}, five for each of "
            f"{config.num_layers} layers: give the state of this model"
        )


def _refuse_batch(state: DecoderState) -> None:
    if len(state.position) != 1:
        raise ValueError(
            f"the state has {len(state.position)} rows, and theirs is of one text; "
            "select_rows picks one"
        )
