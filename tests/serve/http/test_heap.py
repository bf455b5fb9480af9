"""What is freed leaves the process."""

import asyncio
import ctypes
import sys
import threading
from types import SimpleNamespace

import pytest

from retnet.serve.http.heap import M_ARENA_MAX, MOST_HEAPS, tidy_heap


def test_free_memory_is_given_back_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    calls: list[int] = []
    twice = threading.Event()

    def trim(keep: int) -> int:
        calls.append(keep)
        if len(calls) == 2:
            twice.set()
        return 1

    library = SimpleNamespace(malloc_trim=trim, mallopt=lambda *given: told.append(given))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)

    async def live() -> bool:
        async with tidy_heap(0.001):
            return await asyncio.to_thread(twice.wait, 20)

    assert asyncio.run(live())
    assert told == [(M_ARENA_MAX, MOST_HEAPS)]
    assert set(calls) == {0}


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())

    async def live() -> bool:
        async with tidy_heap():
            return True

    assert asyncio.run(live())


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_the_c_library_has_what_is_called() -> None:
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        pytest.skip("another C library")
    assert library.malloc_trim(0) in (0, 1)
