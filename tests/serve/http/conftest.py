"""One server for each file."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from http_server import serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with serving(tmp_path_factory.mktemp("sessions")) as running:
        yield running
