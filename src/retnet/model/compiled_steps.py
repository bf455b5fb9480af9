"""One token of a whole decoder as a program, where every branch can write its part."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from retnet.mixers.branch import (
    ROOM,
    CannotCompile,
    Compiles,
    CompilesState,
    Place,
    ProgramState,
)
from retnet.model.decoder import Decoder, Layer
from retnet.model.state import DecoderState
from retnet.ops import Layout
from retnet.ops.packed_linear import Weights
from retnet.ops.program import NO_NORM, Leaf, Norm, Program, Read
from retnet.ops.program.crew import undisturbed

if TYPE_CHECKING:
    from retnet.ops.program.machine import Machine

try:
    from retnet.ops.program import machine as machines
except ModuleNotFoundError as error:
    if error.name != "numba":
        raise
    machines = None

MAX_ROWS = 16
"""Rows up to which a program is faster than PyTorch's products, which have matrix units."""


class CompiledSteps:
    """Steps of a model by a program that holds copies of its weights.

    Args:
        model: with plain linear layers, on a CPU; it must not change from here on.
        weights: how they are kept.

    Raises:
        CannotCompile: Numba is missing, or something in the model has no instruction.
    """

    def __init__(self, model: Decoder, weights: Weights) -> None:
        if machines is None:
            raise CannotCompile("Numba is not installed; pip install 'retnet[fast]' brings it")
        branches = dict(_branches(model))
        self._program = _written(model, branches, weights)
        self._stateful = {
            place: module for place, module in branches.items() if isinstance(module, CompilesState)
        }
        if not self._stateful:
            raise CannotCompile("no branch has a state")
        self._first = next(iter(self._stateful))
        self._machines: dict[int, Machine] = {}
        self._bound: dict[int, tuple[Any, ...]] = {}
        self._newest: dict[int, tuple[DecoderState, int]] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> "CompiledSteps":
        return self  # it holds a program, which never changes, and room to run it

    def opens(self, state: DecoderState) -> bool:
        """Whether a plain state has few enough rows."""
        return len(state.position) <= MAX_ROWS

    def steps(self, state: DecoderState) -> bool:
        """Whether a state was opened here."""
        layer, branch = self._first
        return isinstance(state.layers[layer][branch], ProgramState)

    def open(self, state: DecoderState) -> DecoderState:
        """Prepare a plain state for `step`."""
        layout = Layout.of(len(state.position), 1, position=state.position)
        layers = [list(states) for states in state.layers]
        for (layer, branch), module in self._stateful.items():
            leaves = module.open_leaves(layers[layer][branch], layout)
            layers[layer][branch] = ProgramState(state.position, leaves)
        return DecoderState(state.position, tuple(map(tuple, layers)))

    def close(self, state: DecoderState) -> DecoderState:
        """The plain state after all that was read."""
        layers = [list(states) for states in state.layers]
        used = self._used(state)
        for (layer, branch), module in self._stateful.items():
            leaves = layers[layer][branch].leaves
            layers[layer][branch] = module.close_leaves(leaves, used)
        return DecoderState(state.position, tuple(map(tuple, layers)))

    def step(
        self, tokens: Int[Tensor, " B"], state: DecoderState
    ) -> tuple[Float[Tensor, "B V"], DecoderState]:
        """Logits after one more token of each row, float32, and the state there, opened."""
        B = len(tokens)
        newest, used = self._newest.get(B, (None, 0))
        if state is not newest:
            used = self._used(state)
        machine = self._machine(B)
        if self._bound.get(B) is not state.layers:
            machine.bind({leaf: _leaf(state, leaf) for _, _, leaf in self._program.leaves})
            self._bound[B] = state.layers
        after, used_after = DecoderState(state.position + 1, state.layers), used + 1
        if used_after == ROOM:
            with undisturbed():
                after, used_after = self._next(after), 0
            leaves = self._program.next_leaves
            machine.bind_next({leaf: _leaf(after, leaf) for _, _, leaf in leaves})
        logits = machine.step(tokens, used)
        self._newest[B] = after, used_after
        return logits, after

    def _machine(self, batch: int) -> "Machine":
        if batch not in self._machines:
            assert machines is not None
            self._machines[batch] = machines.Machine(self._program, batch)
        return self._machines[batch]

    def _next(self, state: DecoderState) -> DecoderState:
        """Leaves for the tokens after a place where those there are will be full."""
        layout = Layout.of(len(state.position), 1, position=state.position)
        layers = [list(states) for states in state.layers]
        for (layer, branch), module in self._stateful.items():
            leaves = module.next_leaves(layers[layer][branch].leaves, layout)
            layers[layer][branch] = ProgramState(state.position, leaves)
        return DecoderState(state.position, tuple(map(tuple, layers)))

    def _used(self, state: DecoderState) -> int:
        """Tokens in the leaves of an opened state."""
        layer, branch = self._first
        return int(state.position[0] - state.layers[layer][branch].begin[0])


def _branches(model: Decoder) -> Iterator[tuple[Place, nn.Module]]:
    for i, layer in enumerate(model.layers):
        for j, branch in enumerate(cast(Layer, layer).branches):
            yield Place(i, j), branch


def _written(model: Decoder, branches: dict[Place, nn.Module], weights: Weights) -> Program:
    """Embedding, residual branches, norm, head: `run_body` as a program."""
    config = model.config
    if config.residual != "pre":
        raise CannotCompile(f'residual = "{config.residual}" has no instruction')
    program = Program(weights)
    stream = program.vector(config.d_model)
    factor = math.sqrt(config.d_model) if config.embed_scale else 1.0
    if config.embed_norm:
        embedded = program.vector(config.d_model)
        program.embed(model.embed_tokens.weight, factor, embedded)
        program.copy(Read(embedded, _norm(model.embed_norm)), stream)
    else:
        program.embed(model.embed_tokens.weight, factor, stream)
    for place, branch in branches.items():
        if not isinstance(branch, Compiles):
            raise CannotCompile(f"{type(branch).__name__} has no instructions")
        norm = cast(Layer, model.layers[place.layer]).norms[place.branch]
        branch.write_step(program, Read(stream, _norm(norm)), stream, place)
    weight, bias = model.outward.joined(model)
    program.linear(Read(stream, _norm(model.norm)), weight, bias, None)
    return program


def _norm(module: nn.Module) -> Norm:
    if isinstance(module, nn.Identity):
        return NO_NORM
    kind = "layer" if isinstance(module, nn.LayerNorm) else "rms"
    given: Any = module
    return Norm(kind, given.eps, given.weight, getattr(given, "bias", None))


def _leaf(state: DecoderState, leaf: Leaf) -> Tensor:
    return getattr(state.layers[leaf.layer][leaf.branch].leaves, leaf.field)
