"""Sessions and responses that are too old or too many leave while the server runs."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from retnet.serve.http.background import in_background
from retnet.serve.http.chained import OWNERS
from retnet.serve.http.context import Context
from retnet.serve.sessions import SessionStore

MOST_NAMES = 20
"""In a line of the log."""

log = logging.getLogger("retnet.serve")


@asynccontextmanager
async def expiring(context: Context) -> AsyncIterator[None]:
    """Expire at once, and then every so often; other servers of the same sessions may, too."""
    if context.sessions is None:
        yield
        return
    async with in_background(_go_on(context, context.sessions)):
        yield


async def _go_on(context: Context, store: SessionStore) -> None:
    while True:
        done = asyncio.ensure_future(asyncio.to_thread(store.expire))
        await asyncio.wait((done,))
        error = done.exception()
        if error is not None:  # whatever it is: the server has other things to do
            context.metrics.expiry_failures.inc()
            log.error(json.dumps({"event": "expiry failed", "error": str(error)}))
        elif done.result():
            _tell(context, done.result())
        await asyncio.sleep(context.limits.expire_s)


def _tell(context: Context, gone: tuple[tuple[str, str], ...]) -> None:
    responses = sum(owner.startswith(OWNERS) for owner, _ in gone)
    counts = {"session": len(gone) - responses, "response": responses}
    for kind, number in counts.items():
        context.metrics.expired.labels(kind).inc(number)
    names = [name for _, name in gone[:MOST_NAMES]]
    line = {"event": "expired", **{f"{kind}s": n for kind, n in counts.items()}, "names": names}
    log.info(json.dumps(line))
