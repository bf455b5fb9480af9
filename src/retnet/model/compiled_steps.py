"""One token of a whole decoder as a program, where every branch can write its part."""

import math
import threading
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
from retnet.ops.program.crew import helpers, undisturbed

if TYPE_CHECKING:
    from retnet.ops.program.machine import Machine

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
        self._machine_of = _machine_class()
        branches = dict(_branches(model))
        self._program = _written(model, branches, weights)
        self._stateful = {
            place: module for place, module in branches.items() if isinstance(module, CompilesState)
        }
        if not self._stateful:
            raise CannotCompile("no branch has a state")
        self._first = next(iter(self._stateful))
        self._lock = threading.Lock()  # from binding leaves until the step on them is done
        self._machines: dict[int, Machine] = {}
        # of the last step alone: states are large, and a machine is bound again before it steps
        self._bound: tuple[int, tuple[Any, ...]] | None = None
        self._newest: tuple[DecoderState, int] | None = None

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
        """Logits after one more token of each row, float32, and the state there, opened.

        Raises:
            ValueError: tokens and state differ in rows, or rows were opened at different times.
            IndexError: a token is not in the vocabulary.
        """
        with self._lock:
            return self._step(tokens, state)

    def rest(self) -> None:
        """Leave the cores to others until the next step; its helpers would look for it."""
        for machine in list(self._machines.values()):
            machine.rest()

    def _step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        B = len(tokens)
        if len(state.position) != B:
            raise ValueError(
                f"tokens has {B} rows and the state {len(state.position)}; they must be equal: "
                "select_rows picks the state's"
            )
        newest, used = self._newest or (None, 0)
        if state is not newest:
            used = self._used(state)
        if self._bound is None or self._bound[0] != B or self._bound[1] is not state.layers:
            self._bound = None  # until all is bound
            leaves = {leaf: _leaf(state, leaf) for _, _, leaf in self._program.leaves}
            self._machine(B).bind(leaves)
            self._bound = B, state.layers
        machine = self._machines[B]
        after, used_after = DecoderState(state.position + 1, state.layers), used + 1
        if used_after == ROOM:
            with undisturbed():
                after, used_after = self._next(after), 0
            leaves = self._program.next_leaves
            machine.bind_next({leaf: _leaf(after, leaf) for _, _, leaf in leaves})
        logits = machine.step(tokens, used)
        self._newest = after, used_after
        return logits, after

    def _machine(self, batch: int) -> "Machine":
        machine, threads = self._machines.get(batch), helpers()
        if machine is None or machine.helpers != threads:  # PyTorch may have been given others
            machine = self._machines[batch] = self._machine_of(self._program, batch, threads)
        return machine

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
        used = (state.position - state.layers[layer][branch].begin).tolist()
        if len(set(used)) != 1:
            raise ValueError(
                f"rows of the opened state have read {used} tokens since; rows are stepped "
                "together only if they were opened together: close states before joining them"
            )
        return used[0]


def _machine_class() -> "type[Machine]":
    """What runs programs; imported here, for it takes seconds and few models are packed."""
    try:
        from retnet.ops.program.machine import Machine
    except ImportError as error:
        if error.name is not None and error.name.startswith("retnet"):
            raise
        why = "is not installed" if error.name == "numba" else f"cannot be imported ({error})"
        raise CannotCompile(f"Numba {why}; pip install 'retnet[fast]' brings it") from error
    return Machine


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
