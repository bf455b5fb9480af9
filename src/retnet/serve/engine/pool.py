"""The states of all texts that are being written, as one batch."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.model import Decoder, DecoderState, concat_rows, copy_state, select_rows
from retnet.model.decoding import ROOM
from retnet.model.state import state_tensors, with_tensors
from retnet.model.steps import close_state, open_state


class Pool:
    """Rows of one batched state; each belongs to a text, or to nobody for a few steps.

    Rows enter and leave between steps. A text that enters takes the place of one that left, by a
    copy of that one row; only where there is no such place is the batch made anew. A row that
    belongs to nobody is computed and ignored until then, or until it is not worth its cost.

    States are opened for single tokens (see `retnet.model.steps`) and closed where a row enters.
    Leaving and looking at a row close nothing.
    """

    IDLE_STEPS = 16
    """Steps after which rows of nobody are dropped at the latest: the cost of making the batch
    anew is about that of a step."""

    def __init__(self, model: Decoder, growing: dict[str, int]) -> None:
        """Begin with no rows; `growing` is that of `RowSize`."""
        self._model = model
        self._growing = growing
        self._owners: list[Any] = []
        self._state: DecoderState | None = None
        self._left: float | None = None  # steps that the opened state has room for; None: plain
        self._idle = 0  # steps since rows became nobody's

    @property
    def owners(self) -> list[Any]:
        """Who has a row, in the order of rows."""
        return [owner for owner in self._owners if owner is not None]

    @torch.inference_mode()
    def step(self, tokens: dict[Any, int]) -> tuple[list[Any], Float[Tensor, "B V"]]:
        """Read a token of every text.

        Args:
            tokens: of each owner.

        Returns:
            The owners, and the logits of what follows in the same order.
        """
        assert self._state is not None
        assert len(tokens) == len(self.owners)
        self._tidy()
        if not self._left:
            self._state = open_state(self._model, self._closed(), ROOM)
            compiled = self._model.compiled_steps
            endless = compiled is not None and compiled.steps(self._state)
            self._left = math.inf if endless else ROOM
        device = self._state.position.device
        read = [0 if owner is None else tokens[owner] for owner in self._owners]
        tokens_read = torch.tensor(read, device=device)[:, None]
        logits, self._state = self._model(tokens_read, self._state)
        self._left -= 1
        rows = [row for row, owner in enumerate(self._owners) if owner is not None]
        return self.owners, logits[:, 0] if len(rows) == len(logits) else logits[rows, 0]

    @torch.inference_mode()
    def enter(self, owners: Sequence[Any], states: Sequence[DecoderState]) -> None:
        """Give each owner a row of its own, a copy of its one-row state."""
        assert not set(owners) & set(self._owners)
        pairs = list(zip(owners, states, strict=True))
        if not pairs:
            return
        state = None if self._state is None else self._closed()
        self._left = None
        holes = [row for row, owner in enumerate(self._owners) if owner is None]
        if state is not None and holes:
            state = _owned(state)
        while holes and pairs:
            assert state is not None
            owner, row_state = pairs.pop()
            row = holes.pop()
            state = _with_row(state, row, row_state)
            self._owners[row] = owner
        if pairs:
            state = concat_rows([*([] if state is None else [state]), *(own for _, own in pairs)])
        self._state = state
        self._owners += [owner for owner, _ in pairs]

    @torch.inference_mode()
    def leave(self, owner: Any) -> None:
        """An owner's row, if it has one, is nobody's from now on."""
        if owner not in self._owners:
            return
        self._owners[self._owners.index(owner)] = None
        if not self.owners:
            self._owners, self._state, self._left = [], None, None

    @torch.inference_mode()
    def state_of(self, owner: Any) -> DecoderState:
        """A copy of an owner's row, plain."""
        assert self._state is not None
        state = select_rows(self._state, [self._owners.index(owner)])
        if self._left is not None:
            state = close_state(self._model, state)
        return copy_state(trimmed(state, self._growing))

    def _tidy(self) -> None:
        """Drop the rows of nobody once they are many or old."""
        holes = self._owners.count(None)
        self._idle = self._idle + 1 if holes else 0
        # where documents have a longest length, nobody's must not grow beyond it
        many = 4 * holes >= len(self._owners) or self._model.max_tokens is not None
        if holes and (many or self._idle >= self.IDLE_STEPS):
            assert self._state is not None
            rows = [row for row, owner in enumerate(self._owners) if owner is not None]
            self._state = select_rows(self._state, rows)
            self._owners, self._idle = self.owners[:], 0

    def _closed(self) -> DecoderState:
        assert self._state is not None
        state = self._state
        if self._left is not None:
            state = close_state(self._model, state)
        nobody = [row for row, owner in enumerate(self._owners) if owner is None]
        if nobody:  # their length does not count
            position = state.position.clone()
            position[nobody] = 0
            state = state._replace(position=position)
        return trimmed(state, self._growing)


class RowSize(NamedTuple):
    """What one row's state looks like.

    Attributes:
        empty: the state of a text of which nothing has been read, one row.
        growing: the tensors that get a slot for every token, and the axis of slots.
    """

    empty: DecoderState
    growing: dict[str, int]

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Decoder) -> "RowSize":
        """That of a model's states."""
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=model.embed_tokens.weight.device)
        nothing = model.hidden(tokens[:, :1], valid=torch.zeros_like(tokens[:, :1]).bool())[1]
        one, two = (state_tensors(model.hidden(tokens[:, :T])[1]) for T in (1, 2))
        axes = {}
        for name, leaf in one.items():
            sizes = enumerate(zip(leaf.shape, two[name].shape, strict=True))
            differ = [axis for axis, (first, second) in sizes if first != second]
            if differ:
                (axes[name],) = differ
        return cls(trimmed(nothing, axes), axes)

    def bytes(self, tokens: int | None) -> int:
        """Of a row after so many tokens; None where that does not matter."""
        total = 0
        for name, leaf in state_tensors(self.empty).items():
            shape = list(leaf.shape)
            if name in self.growing:
                assert tokens is not None
                shape[self.growing[name]] = tokens
            total += math.prod(shape) * leaf.element_size()
        return total

    def check(self, state: DecoderState) -> None:
        """Refuse a state that is not one row of this model.

        Raises:
            ValueError: it is not; what differs.
        """
        if len(state.position) != 1:
            raise ValueError(
                f"the state has {len(state.position)} rows and a request one; select_rows picks it"
            )
        mine, theirs = state_tensors(self.empty), state_tensors(state)
        if mine.keys() != theirs.keys():
            raise ValueError("the state is of another model: its layers or mixers differ")
        for name, leaf in mine.items():
            want, have = list(leaf.shape), list(theirs[name].shape)
            if name in self.growing:  # a slot for each token: to read others would end the engine
                want[self.growing[name]] = int(state.position[0])
            if want != have or leaf.dtype != theirs[name].dtype:
                raise ValueError(
                    f"the state is of another model: {name} is {theirs[name].dtype} {have} and "
                    f"must be {leaf.dtype} {want}"
                )


def trimmed(state: DecoderState, growing: dict[str, int]) -> DecoderState:
    """A state without slots that its longest row does not use."""
    if not growing:
        return state
    longest = int(state.position.max())
    tensors = state_tensors(state)
    for name, axis in growing.items():
        if tensors[name].shape[axis] > longest:
            tensors[name] = tensors[name].narrow(axis, 0, longest)
    return with_tensors(state, tensors)


def _owned(state: DecoderState) -> DecoderState:
    """A state whose tensors can be written: none shares memory with another or with itself."""
    seen: set[int] = set()
    tensors = {}
    for name, leaf in state_tensors(state).items():
        where = leaf.untyped_storage().data_ptr()
        dense = leaf.untyped_storage().nbytes() == leaf.numel() * leaf.element_size()
        tensors[name] = leaf if dense and where not in seen else leaf.clone()
        seen.add(where)
    return with_tensors(state, tensors)


def _with_row(state: DecoderState, row: int, one: DecoderState) -> DecoderState:
    """Write a one-row state into a row, in place where it fits."""
    tensors, new = state_tensors(state), state_tensors(one)
    fits = all(
        all(n <= m for n, m in zip(new[name].shape[1:], leaf.shape[1:], strict=True))
        for name, leaf in tensors.items()
    )
    if not fits:  # one text is longer than all others: everybody's slots grow
        B = len(state.position)
        state = select_rows(concat_rows([state, one]), list(range(B)))
        tensors = state_tensors(state)
    for name, leaf in tensors.items():
        target = leaf[row]
        if new[name].shape[1:] != target.shape:
            target.zero_()
            for axis, size in enumerate(new[name].shape[1:]):
                target = target.narrow(axis, 0, size)
        target.copy_(new[name][0])
    return with_tensors(state, tensors)
