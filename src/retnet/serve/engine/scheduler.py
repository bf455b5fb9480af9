"""Who reads how much of a prompt in the next step. There are no tensors here."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class QueueFull(Exception):
    """No more requests can wait.

    Attributes:
        retry_after_s: seconds after which there is likely to be room.
    """

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        """Say how many wait."""
        self.retry_after_s = retry_after_s
        super().__init__(
            f"{waiting} requests are waiting, as many as may; "
            f"try again in {retry_after_s:.0f} seconds"
        )


class Chunk(NamedTuple):
    """Tokens `start` to `stop` of the prompt of request `key`."""

    key: int
    start: int
    stop: int


@dataclass
class _Reading:
    rows: int
    length: int
    borders: deque[int]
    done: int = 0


@dataclass
class Scheduler:
    """Admits requests in their order and shares a budget of tokens among those that read.

    A request holds a row for each of its samples from its admission on. What is not admitted
    waits. Every request that reads gets at least a token in every step, so none starves, however
    long the others' prompts are.

    Attributes:
        max_rows: rows held at most by all requests together.
        queue_size: requests that wait at most.
    """

    max_rows: int
    queue_size: int
    _waiting: dict[int, _Reading] = field(default_factory=dict)
    _reading: dict[int, _Reading] = field(default_factory=dict)
    _rows: dict[int, int] = field(default_factory=dict)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def num_rows(self) -> int:
        """Rows held."""
        return sum(self._rows.values())

    def add(
        self, key: int, rows: int, length: int, borders: Sequence[int], retry_after_s: float = 1.0
    ) -> None:
        """Put a request at the end of the queue.

        Args:
            key: names it.
            rows: that it needs, at most `max_rows`.
            length: tokens of its prompt.
            borders: rising numbers of tokens at which a chunk must end.
            retry_after_s: what `QueueFull` says.

        Raises:
            QueueFull: as many as may are waiting.
        """
        assert 1 <= rows <= self.max_rows
        assert length >= 1
        if len(self._waiting) >= self.queue_size:
            raise QueueFull(len(self._waiting), retry_after_s)
        self._waiting[key] = _Reading(rows, length, deque(borders))

    def admit(self) -> list[int]:
        """Let those in whose turn it is, as far as there are rows."""
        admitted = []
        for key, reading in list(self._waiting.items()):
            if self.num_rows + reading.rows > self.max_rows:
                break  # nobody overtakes: a request of many rows would never have its turn
            self._reading[key] = self._waiting.pop(key)
            self._rows[key] = reading.rows
            admitted.append(key)
        return admitted

    def skip(self, key: int, tokens: int) -> None:
        """The first `tokens` of a prompt need not be read; at least one remains."""
        reading = self._reading[key]
        assert tokens < reading.length
        reading.done = tokens

    def plan(self, budget: int) -> list[Chunk]:
        """Share `budget` tokens among all who read: equally, but what one cannot use is others'.

        The requests of chunks that end a prompt read no more.
        """
        chunks = []
        wants = {key: _wanted(reading) for key, reading in self._reading.items()}
        turns = sorted(wants, key=lambda key: wants[key])  # in equal need, in order of admission
        for position, key in enumerate(turns):
            reading = self._reading[key]
            share = max(budget // (len(turns) - position), 1)
            count = min(wants[key], share)
            budget -= count
            chunks.append(Chunk(key, reading.done, reading.done + count))
            reading.done += count
            if reading.done == reading.length:
                del self._reading[key]
        return chunks

    def release(self, key: int) -> None:
        """One sample of a request has ended: its row is free."""
        self._rows[key] -= 1
        if self._rows[key] == 0:
            del self._rows[key]

    def remove(self, key: int) -> None:
        """Forget a request and free all its rows, wherever it is."""
        self._waiting.pop(key, None)
        self._reading.pop(key, None)
        self._rows.pop(key, None)


def _wanted(reading: _Reading) -> int:
    """Tokens to the next border or the end."""
    while reading.borders and reading.borders[0] <= reading.done:
        reading.borders.popleft()
    stop = min(reading.borders[0], reading.length) if reading.borders else reading.length
    return stop - reading.done
