"""Probes: small tasks that each ask one thing of a mixer's memory, learned by every mixer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from retnet.bench.table import Table
from retnet.evaluate.probes import PROBES
from retnet.model import rival
from retnet.reproduce.cell import Cell, Result
from retnet.reproduce.experiment import Plan, Report, Setup
from retnet.reproduce.experiments.domains import gap_of, tuning_remarks
from retnet.reproduce.experiments.figure5 import resized
from retnet.reproduce.experiments.table5 import NAMES, RETNET, RIVALS
from retnet.reproduce.intervals import Claim, estimate
from retnet.reproduce.probing import ProbeTask
from retnet.reproduce.scales import Scale
from retnet.reproduce.sweep import Runs, runs, tuned
from retnet.train import TrainSection

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
        lengths=PROBES[probe].test_lengths,
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
