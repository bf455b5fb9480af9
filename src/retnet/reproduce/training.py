"""Cells that train a model by the train room and then measure it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from retnet.bench.cases import ModelSize, TrainCase
from retnet.bench.ours import trainee_of
from retnet.bench.timing import Effort, alternate
from retnet.bench.trainees import training_step
from retnet.data import DataConfig
from retnet.hub import load_checkpoint, to_dict, write_atomic
from retnet.model import Decoder, DecoderConfig
from retnet.reproduce.cell import MODELS, Metrics, Outcome, Place, digest
from retnet.reproduce.measures import Measure
from retnet.train import RunConfig, RunSection, TrainSection, train
from retnet.train.folder import RunFolder
from retnet.train.loop import Diverged

DIVERGED = "diverged"
"""The metric of a model that did not get through its training."""

DONE = "done.json"
"""In a model's folder when it has been trained: what the training told."""

TUNED_BY = "valid_loss"
"""The metric that the best learning rate has the least of."""

FORWARD = 1 / 3
"""Of the time that a token takes in training, to read it in a test."""

PROBE = Effort(warmup=1, min_rounds=3, budget_s=1.0)
PROBE_ROWS = 2


class Stopped(Exception):
    """A signal asked the training to stop; what it has is saved."""


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """Train from nothing, and measure.

    Attributes:
        model: with its vocabulary.
        data: to learn from.
        fingerprint: of its tokens.
        train: how to learn.
        seed: of weights and order.
        measures: what to measure on the model.
        variants: the same weights in other decoders, each measured too, by the name that goes
            before its metrics.
    """

    model: DecoderConfig
    data: DataConfig
    fingerprint: str
    train: TrainSection
    seed: int
    measures: tuple[Measure, ...]
    variants: Mapping[str, DecoderConfig] = field(default_factory=dict)

    @property
    def cost(self) -> float:
        """Tokens of training, and those of tests by the time that they take."""
        tests = sum(measure.tokens for measure in self.measures) * (1 + len(self.variants))
        return self.train.steps * self.train.tokens_per_step + FORWARD * tests

    @property
    def kind(self) -> str:
        """Models that are alike take the same time for a token."""
        return digest({"model": to_dict(self.model), "seq_len": self.train.seq_len})

    def settings(self) -> dict[str, Any]:
        """All that decides the result, as JSON."""
        return {
            "model": to_dict(self.model),
            "parameters": num_parameters(self.model),
            "text": self.fingerprint,
            "train": to_dict(self.train),
            "seed": self.seed,
            "measures": [measure.settings() for measure in self.measures],
            "variants": {name: to_dict(model) for name, model in self.variants.items()},
        }

    def terms(self) -> dict[str, Any]:
        """Text, recipe but for what is each model's own, and tests."""
        train = to_dict(replace(self.train, carry_state=False))
        train.pop("learning_rate", None)
        measures = [measure.settings() for measure in self.measures]
        return {"text": self.fingerprint, "train": train, "measures": measures}

    def run(self, place: Place) -> Outcome:
        """Train, or go on training, or find the model trained; and measure."""
        folder = place.work / MODELS / digest(self._trained())
        metrics = _read_done(folder)
        if metrics is None:
            try:
                metrics = self._train(folder, place)
            except Diverged:
                shutil.rmtree(folder, ignore_errors=True)
                return Outcome({DIVERGED: 1.0})
        model, _ = load_checkpoint(folder, device="cuda" if torch.cuda.is_available() else "cpu")
        for name, config in {"": self.model, **self.variants}.items():
            reader = model if not name else variant(model, config)
            for measure in self.measures:
                for metric, value in measure(reader, place).items():
                    metrics[f"{name}: {metric}" if name else metric] = value
        return Outcome(metrics)

    def _trained(self) -> dict[str, Any]:
        """All that decides the weights: other experiments may measure other things on them."""
        settings = self.settings()
        return {name: settings[name] for name in ("model", "text", "train", "seed")}

    def _train(self, folder: Path, place: Place) -> Metrics:
        """What the training itself tells; the weights stay, what only it needs does not."""
        config = RunConfig(
            run=RunSection(dir=str(folder.absolute()), seed=self.seed),
            data=self.data,
            model=self.model,
            train=self.train,
        )
        result = train(config, base=place.root, console=silent(), picture=False)
        if not result.finished:
            raise Stopped
        names = ("loss", TUNED_BY, "valid_bits_per_byte", "seconds")
        metrics = {name: float(result.metrics[name]) for name in names}
        text = json.dumps(metrics)
        write_atomic(folder / DONE, lambda path: path.write_text(text, encoding="utf-8"))
        shutil.rmtree(RunFolder(folder).trainer, ignore_errors=True)
        return metrics

    def seconds(self, place: Place) -> float:  # noqa: ARG002 - other tasks need it
        """By a few steps of fewer rows."""
        case = TrainCase(
            T=self.train.seq_len,
            B=PROBE_ROWS,
            precision=self.train.precision,
            size=ModelSize(vocab_size=self.model.vocab_size),
        )
        with torch.random.fork_rng(devices=[]):
            step = training_step(trainee_of(Decoder(self.model)), case)
            times = alternate({"step": step}, PROBE)["step"]
        return self.cost * min(times) / (PROBE_ROWS * self.train.seq_len)


def variant(model: Decoder, config: DecoderConfig) -> Decoder:
    """The same weights in another decoder."""
    other = Decoder(config)
    other.load_state_dict(model.state_dict())
    return other.to(next(model.parameters()).device).eval()


@cache
def num_parameters(config: DecoderConfig) -> int:
    """Without embedding and head, which all models of a comparison share."""
    bare = replace(config, vocab_size=max(config.vocab_size, 1))
    with torch.device("meta"):
        return Decoder(bare).num_parameters(embeddings=False)


def silent() -> Console:
    """A console that shows nothing."""
    return Console(quiet=True, force_terminal=False)


def rescaled(train: TrainSection, steps: int) -> TrainSection:
    """The same recipe for so many steps: a tenth of them to warm up, or fewer as it says."""
    share = min(train.warmup_steps / train.steps, 0.1)
    return replace(
        train,
        steps=steps,
        warmup_steps=max(round(share * steps), 1),
        save_every=max(steps // 4, 1),
        log_every=max(steps // 20, 1),
    )


def _read_done(folder: Path) -> Metrics | None:
    """What the training of a model told; None if it has not ended."""
    try:
        return json.loads((folder / DONE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
