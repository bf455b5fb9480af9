"""A model for replicas to serve."""

from pathlib import Path

import pytest

from http_server import tiny_model
from retnet.data import Tokenizer
from retnet.hub import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_checkpoint(folder, tiny_model(), Tokenizer.bytes())
    return folder
