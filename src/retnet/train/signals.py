"""Stop when asked: finish what cannot be cut short, then let the loop save and leave."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequested(Exception):
    """Work that may be cut short was cut short."""


class StopRequest:
    """Inside the block, the first SIGINT or SIGTERM is noted; the second does what it always does.

    Signals reach the main thread only, so elsewhere the block does nothing.

    Attributes:
        name: of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def stoppable(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, but raise StopRequested instead of the next one once asked to stop."""
        for item in items:
            if self.name:
                raise StopRequested
            yield item

    def _note(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._restore()
        # Not print: a handler may run in the middle of a buffered write.
        os.write(2, f"\n{self.name}: saving after this step; once more to leave at once\n".encode())

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
