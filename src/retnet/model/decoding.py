"""Decoding: read prompts in chunks, then step token by token at a cost that never grows."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retnet.model.decoder import Decoder
from retnet.model.sampling import PLAIN, Sampling, row_generator, sample
from retnet.model.state import DecoderState, concat_rows, select_rows
from retnet.model.steps import close_state, open_state
from retnet.ops.program.crew import undisturbed

ROOM = 256
"""Steps that a state is first opened for; each time after, for twice as many."""


@torch.inference_mode()
def prefill(
    model: Decoder,
    tokens: Int[Tensor, "B T"],
    state: DecoderState | None = None,
    *,
    valid: Bool[Tensor, "B T"] | None = None,
    chunk_tokens: int = 2048,
) -> tuple[Float[Tensor, "B V"], DecoderState]:
    """Read prompts of any length at the memory of one chunk.

    A row leaves the batch after the chunk in which it ends, and the head sees one token per row.

    Args:
        model: used as it is; `model.eval()` turns its dropout off.
        tokens: prompts, padded to one length.
        state: what to continue from; None for the start of a text.
        valid: False at padding, anywhere in a row; None when there is none.
        chunk_tokens: tokens of each row that the model is given at a time.

    Returns:
        Each row's prediction after its last valid token, and the state there: the same as the
        row alone would give.

    Raises:
        ValueError: a row has no token, or chunk_tokens is not positive.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens ({chunk_tokens}) must be at least 1; 2048 is usual")
    ends = _row_ends(tokens, valid)
    rows = list(range(len(ends)))  # still being read
    ended_rows, ended_hidden, ended_states = [], [], []
    for start in range(0, max(ends), chunk_tokens):
        stop = min(start + chunk_tokens, max(ends))
        part = None if valid is None else valid[rows, start:stop]
        if part is not None and part.all():
            part = None
        h, state = model.hidden(tokens[rows, start:stop], state, valid=part)
        done = [i for i, row in enumerate(rows) if ends[row] <= stop]
        if not done:
            continue
        ended_rows += [rows[i] for i in done]
        ended_hidden.append(h[done, [ends[rows[i]] - 1 - start for i in done]])  # rows D
        going = [i for i, row in enumerate(rows) if ends[row] > stop]
        if not going:
            ended_states.append(state)
            break
        ended_states.append(select_rows(state, done))
        rows, state = [rows[i] for i in going], select_rows(state, going)
    # back from the order in which rows ended to the order in which they were given
    order = sorted(range(len(ended_rows)), key=ended_rows.__getitem__)
    logits = model.head(torch.cat(ended_hidden)[order])
    return logits, select_rows(concat_rows(ended_states), order)


def _row_ends(tokens: Tensor, valid: Tensor | None) -> list[int]:
    """Count each row's tokens up to and with its last valid one."""
    ends = [tokens.shape[1]] * len(tokens)
    if valid is not None and valid.numel():
        count = torch.arange(1, tokens.shape[1] + 1, device=valid.device)
        ends = (count * valid).amax(1).tolist()
    if 0 in ends or not ends:
        raise ValueError(
            f"row {ends.index(0) if ends else 0} of tokens {tuple(tokens.shape)} has no token to "
            "predict from; give every row at least one: BOS begins a text"
        )
    return ends


class Decoding:
    """An endless iterator that gives the next token of every row, (B,).

    A token enters the state when the one after it is asked for, so while a token is looked at,
    `state` and `logits` are those it was chosen from. To continue later, feed the last token
    with what follows.

    Example:
        >>> from itertools import islice
        >>> from retnet.model import preset
        >>> model = Decoder(preset("small-4m", vocab_size=300)).eval()
        >>> logits, state = prefill(model, torch.tensor([[1, 2, 3]]))
        >>> greedy = Sampling(temperature=0.0)
        >>> tokens = [int(token) for token in islice(Decoding(model, logits, state, greedy), 5)]
        >>> len(tokens)
        5
    """

    def __init__(
        self,
        model: Decoder,
        logits: Float[Tensor, "B V"],
        state: DecoderState,
        sampling: Sampling = PLAIN,
        generators: Sequence[torch.Generator] | None = None,
    ) -> None:
        """Continue from what `prefill` returned; generators default to samples 0 to B - 1."""
        self.logits = logits
        self._state = state
        self._model = model
        self._room, self._left = ROOM, 0  # 0: the state is plain
        self._sampling = sampling
        if generators is None:
            generators = [row_generator(sampling.seed, i) for i in range(len(logits))]
        self._generators = list(generators)
        self._seen = None
        if sampling.penalizes:
            self._seen = torch.zeros(logits.shape, dtype=torch.int32, device=logits.device)
        self._unread: Tensor | None = None

    @property
    def state(self) -> DecoderState:
        """The plain state that `logits` follow."""
        return self.mark()()

    def mark(self) -> Callable[[], DecoderState]:
        """Remember this place; what is returned gives the state here at any time later."""
        model, state = self._model, self._state
        return partial(_closed, model, state) if self._left else lambda: state

    def __iter__(self) -> "Decoding":
        return self

    @torch.inference_mode()
    def __next__(self) -> Int[Tensor, " B"]:
        logits, state, room, left = self.logits, self._state, self._room, self._left
        if self._unread is not None:
            if left <= 1:
                state = state if left == 0 else close_state(self._model, state)
                state, left, room = open_state(self._model, state, room), room + 1, 2 * room
            logits, state = self._model(self._unread[:, None], state)
            logits, left = logits[:, 0], left - 1
        compiled = self._model.compiled_steps is not None
        with undisturbed() if compiled else nullcontext():
            tokens = sample(logits, self._sampling, self._generators, self._seen)
        if self._seen is not None:
            ones = torch.ones_like(tokens, dtype=self._seen.dtype)
            self._seen.scatter_add_(1, tokens[:, None], ones[:, None])
        # all at once and last, so that an interrupted step leaves the one before it whole
        self.logits, self._state, self._unread = logits, state, tokens
        self._room, self._left = room, left
        return tokens

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, which then cost nothing more."""
        rows = list(rows)
        self._state, self.logits = select_rows(self._state, rows), self.logits[rows]
        self._generators = [self._generators[row] for row in rows]
        self._unread = None if self._unread is None else self._unread[rows]
        self._seen = None if self._seen is None else self._seen[rows]


@torch.inference_mode()
def _closed(model: Decoder, opened: DecoderState) -> DecoderState:
    return close_state(model, opened)
