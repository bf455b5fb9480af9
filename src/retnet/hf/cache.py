"""The decoder's state in the shape that `generate` expects of a cache."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from retnet.model import DecoderState, copy_state, select_rows


class RetNetCache(Cache):
    """A `DecoderState` and how many tokens each row was given.

    Its size grows only where a mixer's state does, which attention's alone does.

    It is no list of layers, as other caches of `transformers` are: a state is one value for all
    layers, and every operation on it serves every mixer.

    Attributes:
        state: what the model remembers; None before the first token. States are replaced and
            never modified, so `RetNetCache.of(cache.state)` is a fork that costs nothing.
        num_tokens: tokens given to each row, padding included: the width of the attention mask
            that belongs to them.

    Example:
        >>> cache = RetNetCache()
        >>> cache.get_seq_length(), cache.state is None
        (0, True)
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.state: DecoderState | None = None
        self.num_tokens = 0

    @classmethod
    def of(cls, state: DecoderState, num_tokens: int | None = None) -> "RetNetCache":
        """A cache that holds a state of `retnet`; `num_tokens` is its largest position if None."""
        cache = cls()
        cache.advance(state, int(state.position.max()) if num_tokens is None else num_tokens)
        return cache

    def advance(self, state: DecoderState, num_tokens: int) -> None:
        """Take the state after `num_tokens` more tokens."""
        self.state = state
        self.num_tokens += num_tokens

    def copy(self) -> "RetNetCache":
        """A cache that shares no memory with this one."""
        copied = RetNetCache()
        if self.state is not None:
            copied.advance(copy_state(self.state), self.num_tokens)
        return copied

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Count the tokens given, padding included."""
        return self.num_tokens

    def get_max_length(self, layer_idx: int | None = None) -> int:  # noqa: ARG002
        """Return -1: there is no limit."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:  # noqa: ARG002
        """Return width and offset of a mask over the new tokens: there is nothing else to see."""
        return query_length, 0

    def has_previous_state(self, *_args: Any, **_kwargs: Any) -> bool:
        """Say whether a token was read."""
        return self.state is not None

    def reset(self) -> None:
        """Forget everything."""
        self.state = None
        self.num_tokens = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i go on from row `beam_idx[i]`, (rows,), as beam search asks."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor | Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be repeated."""
        if self.state is not None:
            self.state = select_rows(self.state, indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row, with its copies beside it."""
        if self.state is not None:
            rows = torch.arange(len(self.state.position)).repeat_interleave(repeats)
            self.state = select_rows(self.state, rows)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse to forget the last tokens, unless there are none to forget.

        Raises:
            ValueError: tokens_to_remove is not 0.
        """
        if tokens_to_remove:
            raise ValueError(
                f"crop({tokens_to_remove}) must be crop(0): a state cannot give tokens back; keep "
                "`cache.copy()` from before them"
            )

    @property
    def batch_size(self) -> int:
        """Number of rows; -1 before the first token."""
        return -1 if self.state is None else len(self.state.position)

    @property
    def is_initialized(self) -> bool:
        """Whether there is a state."""
        return self.state is not None

    @property
    def is_croppable(self) -> bool:
        """Tokens cannot be taken back."""
        return False

    @property
    def is_compileable(self) -> bool:
        """False, or `generate` would hand over a mask of four dimensions, where padding is lost."""
        return False

    def __repr__(self) -> str:
        return f"RetNetCache(rows={self.batch_size}, num_tokens={self.num_tokens})"


__all__ = ["RetNetCache"]
