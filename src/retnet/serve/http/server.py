"""From the application to a process: where it listens, and how it ends."""

import asyncio
import ipaddress
import json
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from retnet.serve.http.context import Context

SETTINGS: dict[str, Any] = {
    "http": "h11",  # the other one, where it is installed, has no limit of headers
    "log_config": None,
    "access_log": False,
    "server_header": False,
}
"""Of uvicorn."""

log = logging.getLogger("retnet.serve")


def serve(
    app: ASGIApp, context: Context, *, host: str, port: int, open_to_all: bool, grace_s: float
) -> None:
    """Answer until SIGTERM or Ctrl-C, and then finish what runs.

    Args:
        app: the application.
        context: its parts.
        host: an address of this machine.
        port: 0 takes a free one; the log says which.
        open_to_all: whether no key is asked for: then only this machine may ask.
        grace_s: how long what runs may go on after the signal.

    Raises:
        ValueError: everybody might ask from anywhere.
    """
    if open_to_all and not is_loopback(host):
        raise ValueError(
            f"host ({host}) can be reached from elsewhere and there are no API keys; give "
            "--api-keys FILE, or set RETNET_API_KEYS, or stay on 127.0.0.1"
        )
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        **SETTINGS,
        timeout_graceful_shutdown=round(grace_s) + 5,
    )
    Server(config, context, grace_s).run()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Server(uvicorn.Server):
    """uvicorn's, which ends in order and with success when it is told to."""

    def __init__(self, config: uvicorn.Config, context: Context, grace_s: float) -> None:
        """Make a server that does not listen yet."""
        super().__init__(config)
        self._context = context
        self._grace_s = grace_s

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals; uvicorn would end the process by raising them again."""
        before = {s: signal.signal(s, self._end) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        for listening in self.servers:
            for socket in listening.sockets:
                host, port = socket.getsockname()[:2]
                page = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
                line = {"event": "listening", "host": host, "port": port, "page": page}
                log.info(json.dumps(line))

    def _end(self, number: int, _: object) -> None:
        self._loop.call_soon_threadsafe(self._drain, number)

    def _drain(self, number: int) -> None:
        if self._context.draining:  # asked twice: now
            self._context.worker.abandon("the server is shutting down")
            return
        self._context.draining = True
        running = self._context.worker.num_requests
        log.info('{"event": "draining", "signal": %d, "running": %d}', number, running)
        self.should_exit = True  # no more connections; those that are open may finish
        reason = "the server is shutting down, and the time for what ran is over"
        self._loop.call_later(self._grace_s, self._context.worker.abandon, reason)
