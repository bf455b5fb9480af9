"""Probes: small tasks that each ask one thing of a mixer's memory, learned by every mixer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from retnet.bench.table import Table
from retnet.bench.timing import Effort, alternate
from retnet.data import Batch
from retnet.evaluate.probes import PROBES, Probe, score_probe
from retnet.hub import to_dict
from retnet.model import Decoder, DecoderConfig, rival
from retnet.model.scoring import score
from retnet.reproduce.cell import Cell, Outcome, Place, Result, digest
from retnet.reproduce.experiment import Plan, Report, Setup
from retnet.reproduce.experiments.domains import gap_of, tuning_remarks
from retnet.reproduce.experiments.figure5 import resized
from retnet.reproduce.experiments.table5 import NAMES, RETNET, RIVALS
from retnet.reproduce.intervals import Claim, estimate
from retnet.reproduce.scales import Scale
from retnet.reproduce.sweep import Runs, runs, tuned
from retnet.reproduce.training import DIVERGED, TUNED_BY, num_parameters
from retnet.train import TrainSection
from retnet.train.examples import train_on_examples
from retnet.train.loop import Diverged, derived_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHOSEN = (
    "mqar",
    "context-first",
    "question-first",
    "copying",
    "needle",
    "even-pairs",
    "parity",
    "position",
)
"""Of the probes: recall, its order, copying, distance, automata, positions."""

ROWS = 16
"""Of a step."""

STEPS = {"smoke": 2, "cpu": 300, "gpu": 5000, "paper": 20_000}
TEST_BATCHES = {"smoke": 1}
"""Of 32 rows each; 8 at other scales."""

VALIDATION, TEST = "validation", "test"
"""Purposes of seeds, so that neither shares examples with the training."""

ONE = Effort(warmup=1, min_rounds=1, budget_s=0.0)


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """Learn a probe from examples made on the way, and answer new ones.

    Attributes:
        model: with the probe's vocabulary.
        probe: its name.
        train: how to learn; seq_len is the longest example's.
        seed: of weights and examples.
        test_batches: examples of each length to answer, in batches of 32.
    """

    model: DecoderConfig
    probe: str
    train: TrainSection
    seed: int
    test_batches: int

    @property
    def cost(self) -> float:
        """Steps, those that the tests are worth included."""
        lengths = sum(self._task.test_lengths) / self._task.train_length
        return self.train.steps + self.test_batches * lengths

    @property
    def kind(self) -> str:
        """Alike for equal models and probes."""
        return digest({"model": to_dict(self.model), "probe": self.probe})

    def settings(self) -> dict[str, Any]:
        """All that decides the result."""
        return {
            "model": to_dict(self.model),
            "parameters": num_parameters(self.model),
            "probe": self.probe,
            "train": to_dict(self.train),
            "seed": self.seed,
            "test_batches": self.test_batches,
            "lengths": list(self._task.test_lengths),
            "chance": self._task.chance,
        }

    def terms(self) -> dict[str, Any]:
        """Budget and tests."""
        return {"steps": self.train.steps, "test_batches": self.test_batches}

    def run(self, place: Place) -> Outcome:  # noqa: ARG002 - it needs no folder
        """Train and test; accuracy is a share of all places that ask something."""
        task = self._task
        with torch.random.fork_rng():
            torch.manual_seed(derived_seed(self.seed, "weights"))
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model = Decoder(self.model).to(device)
            try:
                train_on_examples(model, self._batches(), self.train, seed=self.seed)
            except Diverged:
                return Outcome({DIVERGED: 1.0})
        model.eval()
        metrics = {TUNED_BY: self._validation_loss(model)}
        for length in task.test_lengths:
            found = score_probe(
                model,
                task,
                length=length,
                batches=self.test_batches,
                seed=derived_seed(0, f"{TEST} {length}"),
            )
            metrics[f"accuracy @ {length}"] = found.accuracy
            metrics[f"exact @ {length}"] = found.exact
        return Outcome(metrics)

    def seconds(self, place: Place) -> float:  # noqa: ARG002 - it needs no folder
        """By a step."""
        with torch.random.fork_rng():
            model = Decoder(self.model)
            one = replace(self.train, steps=1)
            times = alternate(
                {"step": lambda: train_on_examples(model, self._batches(), one, seed=0)}, ONE
            )
        return self.cost * times["step"][0]

    @property
    def _task(self) -> Probe:
        return PROBES[self.probe]

    def _batches(self) -> Iterator[Batch]:
        """Examples without end; of all lengths up to the longest where shorter ones are tested."""
        task = self._task
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "examples"))
        mixed = task.test_lengths[0] < task.train_length
        while True:
            length = task.train_length
            if mixed:
                low = task.shortest
                length = int(torch.randint(low, length + 1, (), generator=generator))
            yield _batch(task, ROWS, length, generator)

    @torch.inference_mode()
    def _validation_loss(self, model: Decoder) -> float:
        generator = torch.Generator().manual_seed(derived_seed(0, VALIDATION))
        batch = _batch(self._task, 32, self._task.train_length, generator)
        device = next(model.parameters()).device
        got = score(model, batch.inputs.to(device), batch.targets.to(device))
        return got.nats.item() / int(got.num_tokens)


def _batch(task: Probe, rows: int, length: int, generator: torch.Generator) -> Batch:
    examples = task.make(rows, length, generator)
    return Batch(examples.tokens, examples.targets, torch.zeros_like(examples.mask))


class Probes:
    """See the module."""

    name = "probes"
    title = "Probes of memory"
    about = (
        "Decoders of half the width and depth, equal in parameters, learn one small task each: "
        "recall of many keys (mqar), of one key named after or before the pairs (context-first, "
        "question-first), copying, a needle in a text, two automata, and telling places in a text "
        "of equal tokens. Accuracy is the share of right answers, on new examples."
    )
    reads_texts = False

    def plan(self, setup: Setup, done: Mapping[str, Result]) -> Plan:
        """Each mixer on each probe."""
        scale = setup.scale
        pairs = {
            _name(mixer, probe): (mixer, probe)
            for mixer in setup.chosen((RETNET, *RIVALS))
            for probe in CHOSEN
        }

        def cell(name: str, rate: float, seed: int) -> Cell:
            mixer, probe = pairs[name]
            task = _task(scale, mixer, probe, rate, seed)
            return Cell(labels={"model": name, "learning_rate": rate, "seed": seed}, task=task)

        return tuned(dict.fromkeys(pairs, ""), cell, scale, done)

    def report(self, results: Sequence[Result]) -> Report:
        """Accuracy by mixer and probe, at the length of the training and at the longest."""
        found = runs(results)
        at = {
            "as long as in training": {probe: PROBES[probe].train_length for probe in CHOSEN},
            "the longest": {probe: PROBES[probe].test_lengths[-1] for probe in CHOSEN},
        }
        return Report(
            ours=[
                _table(f"Accuracy in %, examples {which}", found, lengths)
                for which, lengths in at.items()
            ],
            papers=[],
            claims=_claims(found),
            remarks=tuning_remarks(found, {}, results),
            draw=lambda figure: _draw(figure, found, at["as long as in training"]),
        )


def _task(scale: Scale, mixer: str, probe: str, rate: float, seed: int) -> ProbeTask:
    base = resized(scale.model, 1, 2, 1, 2)
    heads = {"num_heads": max(base.d_model // 32, 1)}
    with_heads = ("attention", "linear_attention")
    config = base if mixer == RETNET else rival(base, mixer, **heads if mixer in with_heads else {})
    steps = STEPS[scale.name]
    return ProbeTask(
        model=replace(config, vocab_size=PROBES[probe].vocab_size, dropout=0.0),
        probe=probe,
        train=TrainSection(
            steps=steps,
            batch_size=ROWS,
            seq_len=PROBES[probe].train_length,
            learning_rate=rate,
            warmup_steps=max(steps // 10, 1),
        ),
        seed=seed,
        test_batches=TEST_BATCHES.get(scale.name, 8),
    )


def _name(mixer: str, probe: str) -> str:
    return f"{NAMES[mixer]} on {probe}"


def _accuracy(found: Mapping[str, Runs], mixer: str, probe: str, length: int) -> dict[int, float]:
    """By seed; empty where it was not run."""
    run = found.get(_name(mixer, probe))
    return {} if run is None else run.values(f"accuracy @ {length}")


def _table(title: str, found: Mapping[str, Runs], lengths: Mapping[str, int]) -> Table:
    rows = []
    for mixer in (RETNET, *RIVALS):
        cells = [
            estimate([100 * x for x in values.values()]).text(1) if values else ""
            for probe, length in lengths.items()
            if (values := _accuracy(found, mixer, probe, length)) is not None
        ]
        if any(cells):
            rows.append((NAMES[mixer], *cells))
    chances = ", ".join(f"{probe} {100 * PROBES[probe].chance:.1f}" for probe in lengths)
    return Table(
        title=title,
        columns=("model", *(f"{probe}, {length}" for probe, length in lengths.items())),
        rows=rows,
        caption=(
            "The number after a probe is the tokens of an example. Mean over seeds ± its standard "
            f"error. Guessing gets: {chances}."
        ),
    )


def _claims(found: Mapping[str, Runs]) -> list[Claim]:
    """Of recall, of the order of question and text, and of positions."""

    def accuracy(mixer: str, probe: str) -> dict[int, float]:
        return _accuracy(found, mixer, probe, PROBES[probe].train_length)

    others = [mixer for mixer in RIVALS if mixer != "attention"]
    claims = [
        Claim(
            says="the Transformer recalls many keys better than {}",
            name=NAMES[mixer],
            gap=gap_of(accuracy("attention", "mqar"), accuracy(mixer, "mqar")),
        )
        for mixer in (RETNET, *others)
    ]
    claims += [
        Claim(
            says="the question before the text helps {}",
            name=NAMES[mixer],
            gap=gap_of(accuracy(mixer, "question-first"), accuracy(mixer, "context-first")),
        )
        for mixer in (RETNET, *RIVALS)
    ]
    for mixer in (RETNET, *RIVALS):
        places = accuracy(mixer, "position")
        half = dict.fromkeys(places, 0.5)
        claims.append(
            Claim(
                says="places among equal tokens are told apart, more than half of them, by {}",
                name=NAMES[mixer],
                gap=gap_of(places, half),
            )
        )
    return [replace(claim, unit="accuracy", least=0.01) for claim in claims]


def _draw(figure: "Figure", found: Mapping[str, Runs], lengths: Mapping[str, int]) -> None:
    """A chequered table of accuracies."""
    axes = figure.subplots()
    mixers = [m for m in (RETNET, *RIVALS) if any(_name(m, probe) in found for probe in lengths)]
    grid = [
        [
            estimate([*values.values()]).mean if values else float("nan")
            for probe, length in lengths.items()
            if (values := _accuracy(found, mixer, probe, length)) is not None
        ]
        for mixer in mixers
    ]
    axes.imshow(grid, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(lengths)), [*lengths], rotation=20, ha="right", fontsize=8.5)
    axes.set_yticks(range(len(mixers)), [NAMES[mixer] for mixer in mixers], fontsize=8.5)
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            if value == value:  # not run is no number
                color = "black" if value > 0.6 else "white"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=color)
    axes.set_title("Accuracy in %, examples as long as in training", loc="left", fontsize=10)
