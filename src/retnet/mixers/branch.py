"""What the decoder asks of a branch: the one signature that every mixer has."""

from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from retnet.ops import Layout
from retnet.ops.packed_linear import Weights
from retnet.ops.program import Program, Read, Vector
from retnet.types import Form, FormChoice


class Depth(NamedTuple):
    """Where in the stack a branch stands; some initialisations depend on it.

    Attributes:
        layer: index of its layer, from 0.
        num_layers: L.
    """

    layer: int
    num_layers: int


ALONE = Depth(0, 1)
"""The place of a branch in a stack of one layer."""


def chosen_form(form: FormChoice, tokens: int) -> Form:
    """The form itself, and for `auto` what is fastest: a step for one token, chunks for more."""
    if form != "auto":
        return form
    return "recurrent" if tokens == 1 else "chunkwise"


@runtime_checkable
class Branch(Protocol):
    """A residual branch: `(x, state) -> (y, state)`.

    Causal. Splitting T anywhere and handing the state over changes nothing. `state=None` starts
    a sequence. A state is a NamedTuple of real tensors with the batch first, never modified in
    place, or None for a branch that remembers nothing. A row that has read nothing is zero in all
    of them, and every form gives the same numbers in them. `layout` holds positions, padding and
    document starts; `form` says how to compute a recurrence that has several forms.

    Where `layout.spread` is not None, the tokens are one rank's slice of longer rows. A branch with
    a state that then takes and returns the states of the whole rows, and sees to what passes
    between the ranks, says so by a class attribute `spans_ranks = True`; others are refused.

    A branch that cannot read documents of any length has an attribute `max_tokens`, the longest.
    """

    def __call__(
        self, x: Float[Tensor, "B T D"], state: Any, layout: Layout, form: FormChoice
    ) -> tuple[Float[Tensor, "B T D"], Any]:
        """Map a batch of T tokens and the state before them to outputs and the state after."""
        ...

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:
        """Draw new weights; `gain` multiplies those that set the size of the branch's output."""
        ...

    def state_size(self, tokens: int) -> int:
        """Numbers in a row's state after it has read `tokens` tokens of a document."""
        ...

    def flops_per_token(self, seq_len: int) -> int:
        """Operations of the matrix products of a forward pass, less those of linear layers.

        Per token of a row of `seq_len`, by the form that trains it; a multiplication and an
        addition are two. The backward pass is taken to have twice as many.
        """
        ...


@runtime_checkable
class Steps(Protocol):
    """A branch that keeps its state in another way while it reads one token at a time.

    Its forward then takes and returns opened states, for one token, without gradients and without
    padding or starts. An opened state is a NamedTuple of tensors with the batch first. It may share
    memory with the ones before it in such a way that they can still be closed, but only the newest
    may be stepped.
    """

    def open_state(self, state: Any, tokens: int) -> Any:
        """Begin at most `tokens` steps after a plain state, which is not modified."""
        ...

    def close_state(self, opened: Any) -> Any:
        """Return the plain state after all that was read."""
        ...


@runtime_checkable
class Packs(Protocol):
    """A branch whose weights can also be kept in an order for products of few tokens."""

    def pack(self, weights: Weights) -> None:
        """Keep such copies; from then on the parameters must not change."""
        ...


@runtime_checkable
class Fades(Protocol):
    """A branch of heads that forget each at a rate of its own, whatever they read.

    Attributes:
        log_decays: natural logarithm of each head's decay per token.
        of_heads: fields of its state that have the heads second; no other is of one head.
    """

    log_decays: tuple[float, ...]
    of_heads: ClassVar[tuple[str, ...]]


class Place(NamedTuple):
    """Which branch of which layer."""

    layer: int
    branch: int


class CannotCompile(ValueError):
    """A model, or a branch of it, cannot be written as a program; the message says why."""


ROOM = 16
"""Tokens that leaves have room for."""


class ProgramState(NamedTuple):
    """A branch's state while a program steps it.

    Attributes:
        begin: the position of each row's first token since `leaves` were made.
        leaves: a NamedTuple of tensors, batch first, contiguous; the program writes to
            places of them that belong to tokens not yet read.
    """

    begin: Int[Tensor, " B"]
    leaves: Any


@runtime_checkable
class Compiles(Protocol):
    """A branch whose work for one token can be written as instructions; see `retnet.ops.program`.

    One that remembers nothing needs `write_step` alone.
    """

    def write_step(self, program: Program, x: Read, stream: Vector, at: Place) -> None:
        """Append what adds the branch's output for x to the residual stream.

        Raises:
            CannotCompile: an option of this branch has no instructions.
        """
        ...


@runtime_checkable
class CompilesState(Compiles, Protocol):
    """A `Compiles` with a state."""

    def open_leaves(self, state: Any, layout: Layout) -> Any:
        """Make leaves with room for the next ROOM tokens after a plain state.

        `layout` says where the first of them stands. The state is not modified.
        """
        ...

    def next_leaves(self, leaves: Any, layout: Layout) -> Any:
        """Make leaves for the tokens after these.

        The program writes the state to them when it reads the last token that `leaves` has room
        for; `layout` says where the token after it stands.
        """
        ...

    def close_leaves(self, leaves: Any, used: int) -> Any:
        """Return the plain state after so many tokens."""
        ...


@runtime_checkable
class BranchConfig(Protocol):
    """A frozen dataclass that describes a branch and builds it.

    What the page about it says is the first line of its docstring, which names it and its paper,
    and class attributes: `formula`, what it computes, in a line; `cost`, of a token in training and
    in decoding, as orders of growth; and perhaps `left_out`, what its paper has and this has not.
    """

    def build(self, d_model: int) -> nn.Module:
        """Make the module, an `nn.Module` that is a `Branch`."""
        ...
