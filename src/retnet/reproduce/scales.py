"""Scales: how large models are, how much they read and how often, from seconds to the paper's."""

from dataclasses import dataclass, replace
from typing import Any

from retnet.data import TokenizerConfig
from retnet.model import DecoderConfig, preset
from retnet.reproduce.texts import Amounts
from retnet.train import TrainSection

QUIET: dict[str, Any] = {"eval_every": 0, "sample_tokens": 0, "keep": 1}
"""Of a run that only its end counts of."""

SMOKE = "smoke"
"""The scale that only shows that everything works; its cells take no longer than to time them."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A size of experiments.

    Attributes:
        name: of the scale.
        about: in words.
        model: RetNet at this scale, without a vocabulary; the others have as many parameters.
        train: how every model learns, but for the learning rate.
        rates: learning rates to choose from, for each model alike.
        seeds: to run; the first also chooses the learning rate.
        amounts: of text.
        longest: tokens of the longest rows that a model is tested on.
    """

    name: str
    about: str
    model: DecoderConfig
    train: TrainSection
    rates: tuple[float, ...]
    seeds: int
    amounts: Amounts
    longest: int


def _smoke() -> Scale:
    small = preset("small-1m")
    return Scale(
        name=SMOKE,
        about="to see that everything works, in seconds; its numbers mean nothing",
        model=replace(small, d_model=64, layers=(replace(small.layers[0], repeat=2),)),
        train=TrainSection(
            steps=3,
            batch_size=2,
            seq_len=64,
            warmup_steps=1,
            eval_tokens=128,
            save_every=0,
            **QUIET,
        ),
        rates=(3e-3, 1e-2),
        seeds=2,
        amounts=Amounts(
            train_bytes=100_000,
            test_tokens=1024,
            document_tokens=512,
            tokenizer=TokenizerConfig(kind="bytes"),
        ),
        longest=256,
    )


def _cpu() -> Scale:
    return Scale(
        name="cpu",
        about="about a million parameters, minutes on a core for each run",
        model=preset("small-1m"),
        train=TrainSection(
            steps=500,
            batch_size=8,
            seq_len=256,
            warmup_steps=50,
            decay_to=0.05,
            eval_tokens=32_768,
            save_every=125,
            **QUIET,
        ),
        rates=(1e-3, 3e-3, 1e-2),
        seeds=3,
        amounts=Amounts(
            test_tokens=8 * 8193,
            document_tokens=8193,
            tokenizer=TokenizerConfig(vocab_size=2048),
        ),
        longest=8192,
    )


def _gpu() -> Scale:
    return Scale(
        name="gpu",
        about="125 million parameters, hours on a GPU for each run",
        model=preset("small-125m"),
        train=TrainSection(
            steps=8000,
            batch_size=64,
            seq_len=1024,
            warmup_steps=400,
            precision="bfloat16",
            eval_tokens=262_144,
            save_every=1000,
            **QUIET,
        ),
        rates=(3e-4, 1e-3, 3e-3),
        seeds=3,
        amounts=Amounts(
            test_tokens=1_048_576,
            document_tokens=32_769,
            tokenizer=TokenizerConfig(vocab_size=32_000),
        ),
        longest=32_768,
    )


def _paper() -> Scale:
    # section 3.1 and table 7 of arXiv:2307.08621; it states no learning rate for 200 M
    # parameters, so the one of 1.3 B stands beside its neighbours
    return Scale(
        name="paper",
        about="the paper's own recipe: 200 million parameters, 5 billion tokens",
        model=preset("paper-200m"),
        train=TrainSection(
            steps=10_000,
            batch_size=256,
            accumulate=16,
            seq_len=2048,
            warmup_steps=375,
            schedule="linear",
            decay_to=0.0,
            betas=(0.9, 0.98),
            weight_decay=0.05,
            clip_norm=2.0,
            precision="bfloat16",
            eval_tokens=1_048_576,
            save_every=500,
            **QUIET,
        ),
        rates=(3e-4, 6e-4, 1.2e-3),
        seeds=3,
        amounts=Amounts(
            test_tokens=4_194_304,
            document_tokens=65_537,
            tokenizer=TokenizerConfig(vocab_size=100_288),
        ),
        longest=8192,
    )


SCALES = {SMOKE: _smoke, "cpu": _cpu, "gpu": _gpu, "paper": _paper}


def scale(name: str) -> Scale:
    """A scale by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in SCALES:
        raise ValueError(f'no scale "{name}"; choose one of {", ".join(SCALES)}')
    return SCALES[name]()
