"""A checkpoint of a model that has learned nothing, for commands to read."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retnet.cli import main
from retnet.data import Tokenizer
from retnet.hub import from_dict, save_checkpoint
from retnet.model import Decoder, DecoderConfig

Run = Callable[..., tuple[int, str, str]]

LAYER = {
    "mixer": {"name": "retention", "num_heads": 2},
    "channel": {"name": "glu", "width": 8},
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tokenizer = Tokenizer.bytes()
    config = {"d_model": 16, "layers": [LAYER], "vocab_size": tokenizer.vocab_size}
    torch.manual_seed(0)
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, Decoder(from_dict(DecoderConfig, config)), tokenizer)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process: (status, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as exit:  # from the parser
            status = int(exit.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call
