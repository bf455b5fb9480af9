"""States made for reading one token at a time, and weights likewise."""

import logging
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any, Literal, cast

import torch

from retnet.mixers.branch import CannotCompile, Packs, Steps
from retnet.model.compiled_steps import CompiledSteps
from retnet.model.decoder import Decoder, Layer
from retnet.model.state import DecoderState
from retnet.ops.packed_linear import Weights

log = logging.getLogger(__name__)

Kernels = Literal["auto", "torch", "numba"]
"""Who computes steps: PyTorch, call by call, or a program that Numba compiles; auto is the latter
where it is installed and the model's branches can be written so."""


def open_state(model: Decoder, state: DecoderState, tokens: int) -> DecoderState:
    """Prepare a state for at most `tokens` calls of one token each.

    Each branch that reads single tokens faster from another kind of state gets it. What the calls
    return is opened as well; only the newest may be stepped, and every one can be closed.

    Args:
        model: whose state it is; in evaluation mode and without gradients from here on.
        state: plain; it is not modified.
        tokens: where a state needs room for what is to come, there will be room for so many.
    """
    compiled = model.compiled_steps
    if compiled is not None and compiled.opens(state):
        return compiled.open(state)
    return _of_branches(model, state, lambda branch, own: branch.open_state(own, tokens))


def close_state(model: Decoder, opened: DecoderState) -> DecoderState:
    """The plain state after all that was read."""
    compiled = model.compiled_steps
    if compiled is not None and compiled.steps(opened):
        return compiled.close(opened)
    return _of_branches(model, opened, lambda branch, own: branch.close_state(own))


def pack(model: Decoder, weights: Weights, kernels: Kernels = "auto") -> Decoder:
    """Copy a model for fast steps on a CPU.

    Args:
        model: on a CPU; it is left as it is.
        weights: `float32` and `bfloat16` are the dtype of the copy, `int8` is bfloat16 with the
            products of few tokens from weights of 8 bits (one scale per output); `numba`
            multiplies them by activations of 16 bits (one scale per row).
        kernels: who computes steps on opened states of few rows. `numba` needs `retnet[fast]`; its
            first step compiles for some seconds, once for a machine.

    Returns:
        A model in evaluation mode, for inference alone: it holds its weights twice, in the order
        for long texts and in that for single tokens, so neither must be changed.

    Raises:
        ValueError: a branch cannot be packed, or the model is not on a CPU.
        CannotCompile: `numba` was asked for and is missing, or a branch cannot be written so.

    Example:
        >>> from retnet.model import preset
        >>> model = pack(Decoder(preset("small-1m", vocab_size=300)), "int8")
        >>> logits, state = model(torch.tensor([[1, 2, 3]]))
    """
    copy = deepcopy(model).to(torch.float32 if weights == "float32" else torch.bfloat16)
    copy = copy.eval().requires_grad_(False)
    for layer in copy.layers:
        for branch in cast(Layer, layer).branches:
            if isinstance(branch, Packs):
                branch.pack(weights)
    copy.outward.pack(copy, weights)
    if kernels != "torch":
        try:
            copy.compiled_steps = CompiledSteps(copy, weights)
        except CannotCompile as why:
            if kernels == "numba":
                raise
            _tell_once(f"steps are computed by PyTorch, because {why}")
    return copy


@cache
def _tell_once(message: str) -> None:
    log.warning(message)


def _of_branches(
    model: Decoder, state: DecoderState, change: Callable[[Steps, Any], Any]
) -> DecoderState:
    layers = []
    for layer, states in zip(model.layers, state.layers, strict=True):
        pairs = zip(cast(Layer, layer).branches, states, strict=True)
        layers.append(tuple(change(b, own) if isinstance(b, Steps) else own for b, own in pairs))
    return DecoderState(state.position, tuple(layers))
