"""Threads that help with steps; whoever leads a step never waits for one that has not come."""

import atexit
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class Work(Protocol):
    """Something that threads can help with."""

    def help(self, helper: int) -> None:
        """Help until there has been nothing to do for a moment."""
        ...


class Crew:
    """One for the process: the threads sleep until someone has work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._wakes: list[threading.Event] = []
        self._work: weakref.ReferenceType[Work] | None = None
        self._over = False

    def grow(self, helpers: int) -> None:
        """See that there are so many helpers."""
        with self._lock:
            while len(self._threads) < helpers and not self._over:
                wake, index = threading.Event(), len(self._threads)
                name = f"retnet helper {index}"
                thread = threading.Thread(
                    target=self._serve, args=(index, wake), name=name, daemon=True
                )
                self._threads.append(thread)
                self._wakes.append(wake)
                thread.start()

    def call(self, work: Work, helper: int) -> None:
        """Wake a helper for this work, however often it is called before it comes."""
        if helper >= len(self._wakes):
            self.grow(helper + 1)  # in a child of the process that had them
        self._work = weakref.ref(work)
        if helper < len(self._wakes):  # there is none when the interpreter goes
            self._wakes[helper].set()

    def end(self) -> None:
        """Let all threads return, before the interpreter goes."""
        self._over = True
        for wake in self._wakes:
            wake.set()
        for thread in self._threads:
            thread.join(1.0)

    def _serve(self, index: int, wake: threading.Event) -> None:
        while True:
            wake.wait()
            wake.clear()  # before looking for work, so that none is missed
            if self._over:
                return
            work = None if self._work is None else self._work()
            if work is not None:
                work.help(index)
            del work  # nothing keeps it alive while this thread sleeps


def helpers() -> int:
    """How many threads may help: one less than PyTorch uses, and than there are cores for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(0, min(torch.get_num_threads(), cores or 1) - 1)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let PyTorch compute on this thread alone.

    After work on several its threads spin for milliseconds, on cores where helpers should be.
    The number is the process's: who comes while another is here must not take 1 for what was set.
    """
    with _quiet.lock:
        if _quiet.inside == 0:
            _quiet.threads = torch.get_num_threads()
        _quiet.inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _quiet.lock:
            _quiet.inside -= 1
            torch.set_num_threads(_quiet.threads)


class _Quiet:
    """Who computes undisturbed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.threads = 1  # what they return to


_quiet = _Quiet()


crew = Crew()
"""The process's own."""


def _after_fork() -> None:
    """A child has none of its parent's threads."""
    crew.__init__()
    _quiet.__init__()


atexit.register(crew.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
