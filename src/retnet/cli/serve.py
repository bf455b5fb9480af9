"""Serve a model over HTTP, as OpenAI's clients expect it.

Memory is known at the start and does not grow. / is a page; /health, /metrics and /v1 are there.

Example: retnet serve runs/demo --port 8000 --data-dir sessions
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import UseAppendAction, arg

from retnet.cli.options import Adapter, Checkpoint, WeightsChoice, parse
from retnet.cli.threads import short_spins

if TYPE_CHECKING:
    from retnet.serve.http import Keys

KEYS_VARIABLE = "RETNET_API_KEYS"
DAY_S = 86400.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """See the module."""

    checkpoint: Checkpoint
    """Folder that `retnet demo` or `retnet train` wrote."""
    adapter: Adapter = ""
    weights: WeightsChoice = "saved"
    name: Annotated[str, arg(metavar="NAME")] = ""
    """Of the model, for clients; the folder's by default."""
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """Where to listen; elsewhere than on this machine only with keys."""
    port: Annotated[int, arg(metavar="N")] = 8000
    """0: a free one."""
    api_keys: Annotated[str, arg(metavar="FILE")] = ""
    """Keys, one a line; or in RETNET_API_KEYS, with commas."""
    data_dir: Annotated[str, arg(metavar="FOLDER")] = ""
    """Where sessions are kept, or redis://HOST:PORT/0; none are by default."""
    max_age: Annotated[float | None, arg(metavar="DAYS")] = None
    """Sessions that are not used for so long go."""
    max_stored: Annotated[int | None, arg(metavar="MIB")] = None
    """Of sessions; the oldest go first."""
    memory: Annotated[int, arg(metavar="MIB")] = 256
    """Of sessions that need not be read again."""
    keep_states: Annotated[int, arg(metavar="N")] = 8
    """Turns to which a session can be rolled back."""
    max_state: Annotated[int, arg(metavar="MIB")] = 64
    """That a request may bring or take home."""
    running: Annotated[int, arg(metavar="N")] = 16
    """Texts at once; the others wait."""
    queue: Annotated[int, arg(metavar="N")] = 64
    """Requests that may wait; more are refused."""
    max_tokens: Annotated[int, arg(metavar="N")] = 4096
    """That a request may ask for."""
    max_context: Annotated[int | None, arg(metavar="N")] = None
    """Tokens of a text, for models whose states grow."""
    grace: Annotated[float, arg(metavar="SECONDS")] = 30.0
    """For what runs, after SIGTERM."""
    origin: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="URL")] = ()
    """A web page elsewhere that may ask."""


def main(words: Sequence[str]) -> None:
    """Run `retnet serve`."""
    options = parse(Options, "serve", words, __doc__ or "")
    short_spins()
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; pip install 'retnet[serve]'") from error

    from retnet.hub import load
    from retnet.serve import sessions
    from retnet.serve.engine import Engine, EngineConfig
    from retnet.serve.http import Limits, create_app, serve
    from retnet.serve.sessions import SessionStore, identify

    keys = _keys(options.api_keys)
    limits = Limits(max_tokens=options.max_tokens, state_bytes=options.max_state << 20)
    config = EngineConfig(
        max_running=options.running,
        queue_size=options.queue,
        max_context=options.max_context,
        weights=None if options.weights == "saved" else options.weights,
    )
    model, tokenizer = load(options.checkpoint, adapter=options.adapter or None)
    identity = identify(model)  # before the weights are packed
    store = None
    if options.data_dir:
        kept = sessions.Limits(
            memory_bytes=options.memory << 20,
            disk_bytes=None if options.max_stored is None else options.max_stored << 20,
            max_age_s=None if options.max_age is None else options.max_age * DAY_S,
            keep_states=options.keep_states,
        )
        store = SessionStore(options.data_dir, identity, kept)
    engine = Engine(model, tokenizer, config)
    print(
        f"states of {options.running} texts take at most {engine.stats.pool_bytes:,} bytes",
        file=sys.stderr,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    app, context = create_app(
        engine,
        tokenizer,
        model=options.name or Path(options.checkpoint).resolve().name,
        limits=limits,
        keys=keys,
        sessions=store,
        identity=identity,
        origins=options.origin,
    )
    serve(
        app,
        context,
        host=options.host,
        port=options.port,
        open_to_all=keys is None,
        grace_s=options.grace,
    )
    if store is not None:
        store.close()


def _keys(file: str) -> "Keys | None":
    from retnet.serve.http import Keys

    if file:
        return Keys.read(Path(file))
    words = os.environ.get(KEYS_VARIABLE)
    return None if words is None else Keys([key.strip() for key in words.split(",")])
