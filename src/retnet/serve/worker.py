"""Worker: the one thread that steps the engine, and asyncio on the other side."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from threading import Condition, Thread
from typing import NamedTuple

from retnet.serve.engine import (
    Engine,
    ErrorEvent,
    Event,
    FinishEvent,
    Handle,
    Request,
)


class Told(NamedTuple):
    """An event, and the number of the request in its run."""

    request: int
    event: Event


class Run:
    """Some requests of one caller, in the engine.

    Iterate over it once for what they tell; whoever stops early must call `cancel`.
    """

    def __init__(self, cancel: Callable[["Run"], None]) -> None:
        """Begin a run of no requests; `Worker.submit` adds them."""
        self.handles: dict[Handle, int] = {}
        self.left: dict[Handle, int] = {}
        self.queue: asyncio.Queue[Told] = asyncio.Queue()
        self.num_going = 0
        self._cancel = cancel

    def cancel(self) -> None:
        """Call off what has not ended: its rows are free in the next step."""
        self._cancel(self)

    async def events(self, ping_s: float) -> AsyncIterator[Told | None]:
        """What the engine tells, until every text has ended; None after each silence of `ping_s`.

        After an ErrorEvent nothing more can be relied on: call the run off.
        """
        while self.num_going:
            try:
                told = await asyncio.wait_for(self.queue.get(), ping_s)
            except TimeoutError:
                yield None
                continue
            if isinstance(told.event, FinishEvent | ErrorEvent):
                self.num_going -= 1
            yield told


class Worker:
    """Owns the engine's thread.

    Attributes:
        engine: what it steps.
    """

    def __init__(self, engine: Engine) -> None:
        """Make a worker that does not run yet."""
        self.engine = engine
        self._wake = Condition()
        self._stopping = False
        self._failed = False
        self._runs: dict[Handle, Run] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = Thread(target=self._work, name="engine", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether requests will be answered."""
        return self._thread.is_alive() and not self._failed

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._runs)

    def start(self) -> None:
        """Begin to step, and to tell the event loop that calls this."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Call everything off and end the thread."""
        self.abandon("the server is shutting down")
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def submit(self, requests: Sequence[Request]) -> Run:
        """Put requests into the queue, all of them or none.

        Raises:
            QueueFull: there is no place for all.
            ValueError: the engine refuses one.
        """
        run = Run(self._cancel)
        submitted = False
        try:
            for index, request in enumerate(requests):
                handle = self.engine.submit(request)
                run.handles[handle] = index
                run.left[handle] = request.num_samples
                run.num_going += request.num_samples
                self._runs[handle] = run
            submitted = True
        finally:
            if not submitted:
                self._cancel(run)
        self._notify()
        return run

    def abandon(self, reason: str) -> None:
        """Call every request off and tell its caller."""
        for run in set(self._runs.values()):
            self._fail(run, reason)

    def _fail(self, run: Run, reason: str) -> None:
        handle, index = next(iter(run.handles.items()))
        self._cancel(run)
        run.queue.put_nowait(Told(index, ErrorEvent(handle=handle, sample=0, message=reason)))

    def _cancel(self, run: Run) -> None:
        for handle in run.handles:
            if self._runs.pop(handle, None) is not None:
                self.engine.cancel(handle)
        self._notify()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _work(self) -> None:
        assert self._loop is not None
        ended_well = False
        try:
            while not self._stopping:
                events = self.engine.step()
                if events:
                    self._loop.call_soon_threadsafe(self._tell, events)
                with self._wake:
                    self._wake.wait_for(lambda: self._stopping or self.engine.busy)
            ended_well = True
        finally:  # threading prints what went wrong
            if not ended_well:
                self._failed = True
                self._loop.call_soon_threadsafe(self.abandon, "the engine failed; see its log")

    def _tell(self, events: Sequence[Event]) -> None:
        for event in events:
            run = self._runs.get(event.handle)
            if run is None:  # called off since
                continue
            run.queue.put_nowait(Told(run.handles[event.handle], event))
            if isinstance(event, FinishEvent | ErrorEvent):
                run.left[event.handle] -= 1
                if run.left[event.handle] == 0:
                    del self._runs[event.handle]
