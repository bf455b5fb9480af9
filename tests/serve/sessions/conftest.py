"""A store in the test's own folder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retnet.serve.sessions import Identity, Limits, SessionStore, identify
from session_support import small_model

Open = Callable[..., SessionStore]


@pytest.fixture(scope="session")
def identity() -> Identity:
    return identify(small_model())


@pytest.fixture
def open_store(tmp_path: Path, identity: Identity) -> Iterator[Open]:
    """Open a store in the test's folder, as a process would; limits by name."""
    stores: list[SessionStore] = []

    def call(whose: Identity = identity, **limits: float | None) -> SessionStore:
        stores.append(SessionStore(tmp_path / "data", whose, Limits(**limits)))  # type: ignore[arg-type]
        return stores[-1]

    yield call
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store: Open) -> SessionStore:
    return open_store()
