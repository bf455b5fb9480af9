"""A server on loopback, in this process, with a tiny random model."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import openai
import torch

from ports import wait_until
from retnet.data import Tokenizer
from retnet.model import Decoder, preset
from retnet.serve import sessions
from retnet.serve.engine import Engine, EngineConfig
from retnet.serve.http import Keys, Limits, create_app
from retnet.serve.http.server import SETTINGS, Server
from retnet.serve.sessions import SessionStore, identify

Serving = Callable[..., contextlib.AbstractContextManager[Any]]


def tiny_model() -> Decoder:
    """Its weights have noise, so that it says something."""
    torch.manual_seed(3)
    model = Decoder(preset("small-1m", vocab_size=257)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@contextlib.contextmanager
def serving(
    folder: Path | None = None,
    *,
    keys: tuple[str, ...] = (),
    tokenizer: Tokenizer | None = None,
    limits: dict[str, Any] | None = None,
    kept: dict[str, Any] | None = None,
    origins: tuple[str, ...] = (),
    **config: Any,
) -> Iterator[SimpleNamespace]:
    """Run a server; `folder` is for its sessions, and `kept` how many are."""
    import uvicorn

    model = tiny_model()
    identity = identify(model)
    store = (
        None if folder is None else SessionStore(folder, identity, sessions.Limits(**(kept or {})))
    )
    tokenizer = tokenizer or Tokenizer.bytes()
    engine = Engine(model, tokenizer, EngineConfig(**config))
    app, context = create_app(
        engine,
        tokenizer,
        model="tiny",
        limits=Limits(**(limits or {})),
        keys=Keys(keys) if keys else None,
        sessions=store,
        identity=identity,
        origins=origins,
    )
    server = Server(uvicorn.Config(app, **SETTINGS), context, 5.0)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread = Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=(keys or ("none",))[0], max_retries=0)
    try:
        assert wait_until(lambda: server.started)
        yield SimpleNamespace(
            url=url, client=client, engine=engine, context=context, server=server, app=app
        )
    finally:
        client.close()
        server.should_exit = True
        thread.join(20)
        listening.close()
        if store is not None:
            store.close()
        assert not thread.is_alive()
