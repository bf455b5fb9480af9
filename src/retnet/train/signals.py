"""Stop when asked: finish what cannot be cut short, then let the loop save and leave."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)

ECHO_SECONDS = 1.0
"""So soon after the first, a signal is the same request: a batch system that signals all processes
of a job reaches this one directly and, once more, through torchrun."""


class StopRequested(Exception):
    """Work that may be cut short was cut short."""


class StopRequest:
    """Inside the block, the first SIGINT or SIGTERM is noted; the second does what it always does.

    Signals reach the main thread only, so elsewhere the block does nothing.

    Args:
        speaks: whether to say that the signal was heard.

    Attributes:
        name: of the signal that came, or None.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        self.name: str | None = None
        self._speaks = speaks
        self._came = 0.0
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
        if self.name is not None:
            if time.monotonic() - self._came > ECHO_SECONDS:
                self._restore()
                signal.raise_signal(number)
            return
        self.name, self._came = signal.Signals(number).name, time.monotonic()
        if self._speaks:
            # Not print: a handler may run in the middle of a buffered write.
            text = f"\n{self.name}: saving after this step; once more to leave at once\n"
            os.write(2, text.encode())

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
