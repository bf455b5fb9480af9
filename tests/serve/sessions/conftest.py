"""A store in a folder, and one in Redis: the same tests for both."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redis_server import RedisServer, running
from retnet.serve.sessions import Identity, Limits, SessionStore, identify
from session_support import Place, small_model

Open = Callable[..., SessionStore]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has one: a killed process loses nothing of it either."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="retnet-", dir=memory) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def identity() -> Identity:
    return identify(small_model())


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """An empty server."""
    redis_process.client.flushall()
    return redis_process


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    states = tmp_path / "data/states"
    return Place(
        tmp_path / "data",
        states=lambda: set(os.listdir(states)),
        data=lambda state: (states / state).read_bytes(),
        put=lambda state, data: (states / state).write_bytes(data),
        lose=lambda state: (states / state).unlink(),
    )


@pytest.fixture(params=["folder", "redis"])
def place(request: pytest.FixtureRequest) -> Place:
    """Where sessions are, and which states."""
    if request.param == "folder":
        return request.getfixturevalue("folder")
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.place()


@pytest.fixture
def open_store(place: Place, identity: Identity) -> Iterator[Open]:
    """Open a store in the test's place, as a process would; limits by name."""
    yield from opener(place, identity)


@pytest.fixture
def store(open_store: Open) -> SessionStore:
    return open_store()


@pytest.fixture
def open_folder(folder: Place, identity: Identity) -> Iterator[Open]:
    """As `open_store`, in a folder only."""
    yield from opener(folder, identity)


def opener(place: Place, identity: Identity) -> Iterator[Open]:
    stores: list[SessionStore] = []

    def call(whose: Identity = identity, **limits: float | None) -> SessionStore:
        stores.append(SessionStore(place.address, whose, Limits(**limits)))  # type: ignore[arg-type]
        return stores[-1]

    yield call
    for store in stores:
        store.close()
