"""Memory that was let go goes back to the system."""

import asyncio
import ctypes
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from retnet.serve.http.background import in_background

EVERY_S = 60.0
M_ARENA_MAX = -8
"""Number of the setting in mallopt(3)."""

MOST_HEAPS = 2
"""One for the engine's thread, one for all others."""


@asynccontextmanager
async def tidy_heap(every_s: float = EVERY_S) -> AsyncIterator[None]:
    """Return what is free to the system every so often.

    States of all sizes come and go in many threads. glibc gives each thread a heap of its own and
    keeps what is freed in the middle of one, so memory creeps up though nobody holds it. Other C
    libraries have no such call; there nothing is done.
    """
    library = ctypes.CDLL(None)
    trim = getattr(library, "malloc_trim", None)
    if trim is None:
        yield
        return
    library.mallopt(M_ARENA_MAX, MOST_HEAPS)
    async with in_background(_go_on(trim, every_s)):
        yield


async def _go_on(trim: Callable[[int], int], every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        await asyncio.to_thread(trim, 0)
