"""Cells that learn a probe from examples made on the way, and answer new ones."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from retnet.bench.timing import Effort, alternate
from retnet.evaluate.probes import PROBES, Examples, Probe, score_probe
from retnet.hub import to_dict
from retnet.model import Decoder, DecoderConfig
from retnet.model.scoring import TokenModel, example_nats
from retnet.reproduce.cell import Outcome, Place, digest
from retnet.reproduce.seq2seq import Seq2SeqConfig, Seq2SeqModel
from retnet.reproduce.spectra import effective_rank
from retnet.reproduce.training import DIVERGED, TUNED_BY
from retnet.train import TrainSection
from retnet.train.examples import train_on_examples
from retnet.train.loop import Diverged, derived_seed

ROWS = 32
"""Of the validation, and of each batch of a test."""

VALIDATION, TEST = "validation", "test"
"""Purposes of seeds, so that neither shares examples with the training."""

OPERATIONS = "operations"
"""The metric of a forward pass over one example of the longest in training."""

INPUT_RANK = "input rank"
"""How the metrics begin that hold effective ranks, one for each layer."""

ONE = Effort(warmup=1, min_rounds=1, budget_s=0.0)


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """Learn a probe, and answer new examples of it.

    Attributes:
        model: with the probe's vocabulary.
        probe: its name.
        lengths: of examples to answer, rising.
        train: how to learn; seq_len is the longest example's. Where shorter ones are to be
            answered, all lengths up to it are learned, in steps of as many tokens.
        seed: of weights and examples.
        test_batches: examples of each length to answer, in batches of 32.
    """

    model: DecoderConfig | Seq2SeqConfig
    probe: str
    lengths: tuple[int, ...]
    train: TrainSection
    seed: int
    test_batches: int

    @property
    def cost(self) -> float:
        """Steps, those that the tests are worth included."""
        lengths = sum(self.lengths) / self.train.seq_len
        return self.train.steps + self.test_batches * lengths

    @property
    def kind(self) -> str:
        """Alike for equal models and probes."""
        return digest({"model": to_dict(self.model), "probe": self.probe})

    def settings(self) -> dict[str, Any]:
        """All that decides the result."""
        return {
            "model": to_dict(self.model),
            "parameters": _num_parameters(self.model),
            "probe": self.probe,
            "train": to_dict(self.train),
            "seed": self.seed,
            "test_batches": self.test_batches,
            "lengths": list(self.lengths),
            "chance": self._probe.chance,
        }

    def terms(self) -> dict[str, Any]:
        """Budget and tests."""
        return {"steps": self.train.steps, "test_batches": self.test_batches}

    def run(self, place: Place) -> Outcome:  # noqa: ARG002 - it needs no folder
        """Train and test; accuracy is a share of all places that ask something."""
        with torch.random.fork_rng():
            torch.manual_seed(derived_seed(self.seed, "weights"))
            model = build(self.model).to("cuda" if torch.cuda.is_available() else "cpu")
            try:
                train_on_examples(model, self._batches(), self.train, seed=self.seed)
            except Diverged:
                return Outcome({DIVERGED: 1.0})
        # The counter of operations wants a graph behind every argument that requires gradients.
        model.eval().requires_grad_(False)
        validation = self._fresh(VALIDATION, self.train.seq_len)
        metrics = {TUNED_BY: _loss(model, validation), OPERATIONS: _operations(model, validation)}
        for length in self.lengths:
            found = score_probe(
                model,
                self._probe,
                length=length,
                batch_size=ROWS,
                batches=self.test_batches,
                seed=derived_seed(0, f"{TEST} {length}"),
            )
            metrics[f"accuracy @ {length}"] = found.accuracy
            metrics[f"exact @ {length}"] = found.exact
        if isinstance(model, Seq2SeqModel):
            metrics |= _input_ranks(model, validation)
        return Outcome(metrics)

    def seconds(self, place: Place) -> float:  # noqa: ARG002 - it needs no folder
        """By a step."""
        with torch.random.fork_rng():
            model = build(self.model)
            one = replace(self.train, steps=1)
            times = alternate(
                {"step": lambda: train_on_examples(model, self._batches(), one, seed=0)}, ONE
            )
        return self.cost * times["step"][0]

    @property
    def _probe(self) -> Probe:
        return PROBES[self.probe]

    def _batches(self) -> Iterator[Examples]:
        """Examples without end."""
        probe = self._probe
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "examples"))
        longest, rows = self.train.seq_len, self.train.batch_size
        mixed = self.lengths[0] < longest
        while True:
            length = longest
            if mixed:
                length = int(torch.randint(probe.shortest, longest + 1, (), generator=generator))
            yield probe.make(rows * longest // length, length, generator)

    def _fresh(self, purpose: str, length: int) -> Examples:
        generator = torch.Generator().manual_seed(derived_seed(0, purpose))
        return self._probe.make(ROWS, length, generator)


def build(config: DecoderConfig | Seq2SeqConfig) -> Decoder | Seq2SeqModel:
    """The model of a config."""
    return Seq2SeqModel(config) if isinstance(config, Seq2SeqConfig) else Decoder(config)


@cache
def _num_parameters(config: DecoderConfig | Seq2SeqConfig) -> int:
    """Without embeddings and head."""
    with torch.device("meta"):
        return build(config).num_parameters(embeddings=False)


@torch.inference_mode()
def _loss(model: TokenModel, examples: Examples) -> float:
    """Nats for each place that asks something."""
    device = next(model.parameters()).device
    nats = example_nats(model, examples.tokens.to(device), examples.targets.to(device))
    return nats.item() / int(examples.mask.sum())


@torch.inference_mode()
def _operations(model: TokenModel, examples: Examples) -> float:
    """Of matrix products; a multiplication and an addition are two."""
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter:
        model.hidden(examples.tokens[:1].to(device))
    return float(counter.get_total_flops())


@torch.inference_mode()
def _input_ranks(model: Seq2SeqModel, examples: Examples) -> dict[str, float]:
    """Mean effective rank of the weights between an input's tokens, by layer from 1."""
    device = next(model.parameters()).device
    weights = model.input_weights(examples.tokens.to(device))
    return {
        f"{INPUT_RANK}, layer {number}": effective_rank(layer).mean().item()
        for number, layer in enumerate(weights, 1)
    }
