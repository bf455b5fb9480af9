"""A run of a second: one layer, bytes, a page of text."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retnet.data import DataConfig, TokenizerConfig
from retnet.hub import from_dict
from retnet.model import DecoderConfig
from retnet.train import RunConfig, RunSection, TrainSection

WORDS = ["the", "state", "of", "a", "retention", "layer", "decays", "and", "forgets", "what", "was"]

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """Make a config with text in tmp_path; keywords are fields of TrainSection."""
    return text_and_config(tmp_path)


@pytest.fixture(scope="session")
def make_config_in() -> Callable[[Path], MakeConfig]:
    """`make_config` for another folder, which several tests may share."""
    return text_and_config


def text_and_config(folder: Path) -> MakeConfig:
    draw = random.Random(0)
    for name, documents in (("train", 30), ("valid", 3)):
        texts = (" ".join(draw.choices(WORDS, k=40)) for _ in range(documents))
        (folder / f"{name}.txt").write_text("\n\n".join(texts), encoding="utf-8")

    def make(*, dir: str = "run", dropout: float = 0.0, seed: int = 0, **train: Any) -> RunConfig:
        model = from_dict(
            DecoderConfig,
            {
                "d_model": 16,
                "dropout": dropout,
                "layers": [
                    {
                        "mixer": {"name": "retention", "num_heads": 2},
                        "channel": {"name": "glu", "width": 24},
                    }
                ],
            },
        )
        section = TrainSection(
            steps=12,
            batch_size=4,
            seq_len=24,
            warmup_steps=3,
            learning_rate=0.01,
            log_every=5,
            eval_every=6,
            save_every=4,
            sample_every=8,
            sample_tokens=5,
        )
        return RunConfig(
            run=RunSection(dir=dir, seed=seed),
            data=DataConfig(
                train=("train.txt",),
                valid=("valid.txt",),
                split_on="\n",
                tokenizer=TokenizerConfig(kind="bytes"),
            ),
            model=model,
            train=replace(section, **train),
        )

    return make
