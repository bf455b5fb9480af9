"""States of texts' beginnings, so that what many prompts have in common is read once."""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from retnet.model import DecoderState, copy_state, state_bytes

FIRST_BORDER = 256
"""Tokens of the shortest beginning that is kept without being asked for."""


def borders(length: int, marks: Sequence[int]) -> list[int]:
    """After how many tokens of a prompt its state is kept.

    At the caller's marks, and at 256, 512, 1024 and so on: long beginnings that were not marked
    are found in part, at a cost in states that grows with the logarithm of the prompt. Never at
    the end: of what is read again, one token is left to predict from.

    Raises:
        ValueError: a mark is not within the prompt.
    """
    for mark in marks:
        if not 0 < mark <= length:
            raise ValueError(
                f"mark {mark} must be from 1 to the prompt's number of tokens ({length})"
            )
    grid, border = [], FIRST_BORDER
    while border < length:
        grid.append(border)
        border *= 2
    return sorted({*grid, *(mark for mark in marks if mark < length)})


class PrefixCache:
    """One-row states by the tokens they have read, the least recently used forgotten first."""

    def __init__(self, max_bytes: int) -> None:
        """Keep states of so many bytes together; 0 keeps none."""
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._states: OrderedDict[bytes, DecoderState] = OrderedDict()
        self._lengths: dict[int, int] = {}  # of beginnings -> how many are kept

    def __len__(self) -> int:
        """States kept."""
        return len(self._states)

    def longest(self, prompt: Sequence[int]) -> tuple[int, DecoderState | None]:
        """The longest beginning of a prompt that is kept and leaves a token to read.

        Returns:
            Its number of tokens, and the state after it, not to be modified; (0, None) for none.
        """
        lengths = sorted(length for length in self._lengths if length < len(prompt))
        found, state = 0, None
        for length, key in zip(lengths, _keys(prompt, lengths), strict=True):
            if key in self._states:
                self._states.move_to_end(key)
                found, state = length, self._states[key]
        return found, state

    def keep(self, tokens: Sequence[int], state: DecoderState) -> None:
        """Remember a copy of the state after these tokens, from the beginning of a text."""
        (key,) = _keys(tokens, [len(tokens)])
        size = state_bytes(state)
        if key in self._states or size > self.max_bytes:
            return
        self._states[key] = copy_state(state)
        self._lengths[len(tokens)] = self._lengths.get(len(tokens), 0) + 1
        self.num_bytes += size
        while self.num_bytes > self.max_bytes:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        key, state = self._states.popitem(last=False)
        self.num_bytes -= state_bytes(state)
        length = int.from_bytes(key[:8], "big")
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]


def _keys(tokens: Sequence[int], lengths: Sequence[int]) -> Iterator[bytes]:
    """Of each beginning, in rising order: its length and a hash of its tokens."""
    digest, done = hashlib.blake2b(digest_size=16), 0
    for length in lengths:
        digest.update(array("q", tokens[done:length]).tobytes())
        done = length
        yield length.to_bytes(8, "big") + digest.copy().digest()
