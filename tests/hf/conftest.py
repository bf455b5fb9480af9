"""What the adapter's tests share: the folder of a decoder so small that steps cost nothing."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # read when huggingface_hub is imported: no test asks the network
)

import pytest
import torch

from hf.shared import WORDS
from model.small import config, decoder
from retnet.data import Tokenizer
from retnet.hub import save_checkpoint
from retnet.model import Decoder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe([WORDS], 300)


@pytest.fixture(scope="session")
def own(tokenizer: Tokenizer) -> Decoder:
    """Our decoder, untied."""
    return decoder(config(vocab_size=tokenizer.vocab_size), torch.float32)


@pytest.fixture(scope="session")
def folder(own: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it was saved; tests only read it."""
    path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(path, own, tokenizer)
    return path
