"""Probes: small tasks that each ask one thing of a mixer's memory, learned by every mixer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from retnet.bench.table import Table
from retnet.evaluate.probes import PROBES, Probe
from retnet.model import rival
from retnet.reproduce.cell import Cell, Result
from retnet.reproduce.experiment import Plan, Report, Setup
from retnet.reproduce.experiments.domains import gap_of, tuning_remarks
from retnet.reproduce.experiments.figure5 import resized
from retnet.reproduce.experiments.quality import SHIFTED, token_shift
from retnet.reproduce.experiments.table5 import NAMES, RETNET, RIVALS
from retnet.reproduce.intervals import Claim, estimate
from retnet.reproduce.probing import ProbeTask
from retnet.reproduce.scales import Scale
from retnet.reproduce.sweep import Runs, runs, tuned
from retnet.train import TrainSection

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Lengths(NamedTuple):
    """Tokens of a probe's examples: the longest that are learned, and those to answer."""

    learned: int
    answered: tuple[int, ...]


SHORT = {
    "copying": Lengths(64, (16, 64, 128)),
    "mqar-64": Lengths(64, (16, 64, 128)),
    "needle": Lengths(64, (16, 64, 256)),
    "even-pairs": Lengths(16, (8, 16, 64)),
    "parity": Lengths(16, (8, 16, 64)),
    "position": Lengths(64, (64,)),
}
"""What a small budget is enough for: copying, recall, distance, automata, positions."""


def _own_lengths(probe: Probe) -> Lengths:
    """The probe's own, and a short one, so that examples of all lengths are learned."""
    learned, answered = probe.train_length, set(probe.test_lengths)
    if answered != {learned}:
        answered.add(max(learned // 4, probe.shortest))
    return Lengths(learned, tuple(sorted(answered)))


LONG = {
    name: _own_lengths(PROBES[name])
    for name in (
        "copying",
        "mqar",
        "context-first",
        "question-first",
        "needle",
        "even-pairs",
        "parity",
        "position",
    )
}
"""The probes' own lengths and vocabularies, and one question in front of the text or behind it."""

MIXERS = {RETNET: NAMES[RETNET], "shifted_retention": SHIFTED} | {m: NAMES[m] for m in RIVALS}
"""With their names, and a RetNet of the experiment `quality` among them."""

LEARNED = {"smoke": SHORT, "cpu": SHORT, "gpu": LONG, "paper": LONG}
STEPS = {"smoke": 2, "cpu": 800, "gpu": 5000, "paper": 20_000}
STEP_TOKENS = {"smoke": 256, "cpu": 4096, "gpu": 16_384, "paper": 32_768}
TEST_BATCHES = {"smoke": 1}
"""Of 32 rows each; 8 at other scales."""


APART = 0.25
"""Seeds whose accuracies differ by more are told one by one."""


class Probes:
    """See the module."""

    name = "probes"
    title = "Probes of memory"
    about = (
        "Decoders of half the width and depth, equal in parameters, learn one small task each from "
        "examples of all lengths up to some: copying, recall of many keys (mqar), of one key named "
        "after or before the pairs (context-first, question-first), a needle in a text, two "
        "automata, and telling places in a text of equal tokens. Each takes the learning rate that "
        "is best for its copying. Accuracy is the share of right answers, on new examples."
    )
    reads_texts = False

    def plan(self, setup: Setup, done: Mapping[str, Result]) -> Plan:
        """Each mixer on each probe."""
        scale = setup.scale
        learned = LEARNED[scale.name]
        tuned_on = next(iter(learned))
        pairs = {
            _name(mixer, probe): (mixer, probe)
            for mixer in setup.chosen(tuple(MIXERS))
            for probe in learned
        }
        names = {
            name: "" if probe == tuned_on else _name(mixer, tuned_on)
            for name, (mixer, probe) in pairs.items()
        }

        def cell(name: str, rate: float, seed: int) -> Cell:
            mixer, probe = pairs[name]
            task = _task(scale, mixer, probe, rate, seed)
            return Cell(labels={"model": name, "learning_rate": rate, "seed": seed}, task=task)

        return tuned(names, cell, scale, done)

    def report(self, results: Sequence[Result]) -> Report:
        """Accuracy by mixer and probe, at the length of the training and at the longest."""
        found = runs(results)
        learned = {
            probe: Lengths(of["train"]["seq_len"], tuple(of["lengths"]))
            for probe, of in {str(r.settings["probe"]): r.settings for r in results}.items()
        }
        same = {probe: lengths.learned for probe, lengths in learned.items()}
        longer = {
            probe: lengths.answered[-1]
            for probe, lengths in learned.items()
            if lengths.answered[-1] > lengths.learned
        }
        return Report(
            ours=[
                _table("Accuracy in %, examples as long as in training", found, same),
                _table("Accuracy in %, longer examples than in training", found, longer),
            ],
            papers=[],
            claims=_claims(found, same, longer),
            remarks=[*_luck(found, same), *tuning_remarks(found, {}, results)],
            draw=lambda figure: _draw(figure, found, same),
        )


def _task(scale: Scale, mixer: str, probe: str, rate: float, seed: int) -> ProbeTask:
    base = resized(scale.model, 1, 2, 1, 2)
    heads: dict[str, Any] = {"num_heads": max(base.d_model // 32, 1)}
    if mixer == RETNET:
        config = base
    elif mixer == "shifted_retention":
        config = token_shift(base)
    else:
        with_heads = mixer in ("attention", "linear_attention")
        config = rival(base, mixer, **heads if with_heads else {})
    lengths, steps = LEARNED[scale.name][probe], STEPS[scale.name]
    return ProbeTask(
        model=replace(config, vocab_size=PROBES[probe].vocab_size, dropout=0.0),
        probe=probe,
        lengths=lengths.answered,
        train=TrainSection(
            steps=steps,
            batch_size=STEP_TOKENS[scale.name] // lengths.learned,
            seq_len=lengths.learned,
            learning_rate=rate,
            warmup_steps=max(steps // 10, 1),
        ),
        seed=seed,
        test_batches=TEST_BATCHES.get(scale.name, 8),
    )


def _name(mixer: str, probe: str) -> str:
    return f"{MIXERS[mixer]} on {probe}"


def _accuracy(found: Mapping[str, Runs], mixer: str, probe: str, length: int) -> dict[int, float]:
    """By seed; empty where it was not run."""
    run = found.get(_name(mixer, probe))
    return {} if run is None else run.values(f"accuracy @ {length}")


def _table(title: str, found: Mapping[str, Runs], lengths: Mapping[str, int]) -> Table:
    rows = []
    for mixer in MIXERS:
        cells = [
            estimate([100 * x for x in values.values()]).text(1) if values else ""
            for probe, length in lengths.items()
            for values in [_accuracy(found, mixer, probe, length)]
        ]
        if any(cells):
            rows.append((MIXERS[mixer], *cells))
    chances = ", ".join(f"{probe} {100 * PROBES[probe].chance:.1f}" for probe in lengths)
    return Table(
        title=title,
        columns=("model", *(f"{probe}, {length}" for probe, length in lengths.items())),
        rows=rows,
        caption=(
            "The number after a probe is the tokens of an example; mqar-64 has a vocabulary of 64, "
            "and a pair to recall for every 16 tokens. Mean over seeds ± its standard error. "
            f"Guessing gets: {chances}."
        ),
    )


def _luck(found: Mapping[str, Runs], lengths: Mapping[str, int]) -> list[str]:
    """Where some seeds learned a probe and others did not, of which the mean tells nothing."""
    split = []
    for probe, length in lengths.items():
        for mixer in MIXERS:
            values = _accuracy(found, mixer, probe, length).values()
            if values and max(values) - min(values) > APART:
                each = ", ".join(f"{100 * value:.0f}" for value in sorted(values))
                split.append(f"{_name(mixer, probe)}: {each}")
    if not split:
        return []
    return [
        "A probe is often learned all at once, after steps that show nothing, and a seed decides "
        f"whether that happens in time. Accuracy by seed where it differs most: {'; '.join(split)}."
    ]


def _claims(
    found: Mapping[str, Runs], lengths: Mapping[str, int], longer: Mapping[str, int]
) -> list[Claim]:
    """That attention recalls best, that a question helps in front, that places are told apart."""

    def accuracy(mixer: str, probe: str) -> dict[int, float]:
        return _accuracy(found, mixer, probe, lengths[probe]) if probe in lengths else {}

    recalls = "the Transformer recalls many keys better than {}"
    recall = {
        "copying": "the Transformer copies better than {}",
        "mqar": recalls,
        "mqar-64": recalls,
    }
    claims = [
        Claim(
            says=says,
            name=MIXERS[mixer],
            gap=gap_of(accuracy("attention", probe), accuracy(mixer, probe)),
        )
        for probe, says in recall.items()
        for mixer in MIXERS
        if mixer != "attention" and probe in lengths
    ]
    claims += [
        Claim(
            says="the Transformer finds a needle in longer texts than it learned better than {}",
            name=MIXERS[mixer],
            gap=gap_of(
                *(_accuracy(found, m, "needle", longer["needle"]) for m in ("attention", mixer))
            ),
        )
        for mixer in MIXERS
        if mixer != "attention" and "needle" in longer
    ]
    claims += [
        Claim(
            says="the question before the text helps {}",
            name=MIXERS[mixer],
            gap=gap_of(accuracy(mixer, "question-first"), accuracy(mixer, "context-first")),
        )
        for mixer in MIXERS
        if "question-first" in lengths
    ]
    for mixer in MIXERS:
        places = accuracy(mixer, "position")
        half = dict.fromkeys(places, 0.5)
        claims.append(
            Claim(
                says="places among equal tokens are told apart, more than half of them, by {}",
                name=MIXERS[mixer],
                gap=gap_of(places, half),
            )
        )
    return [replace(claim, unit="accuracy", least=0.01) for claim in claims]


def _draw(figure: "Figure", found: Mapping[str, Runs], lengths: Mapping[str, int]) -> None:
    """A chequered table of accuracies."""
    axes = figure.subplots()
    mixers = [m for m in MIXERS if any(_name(m, probe) in found for probe in lengths)]
    grid = [
        [
            estimate([*values.values()]).mean if values else float("nan")
            for probe, length in lengths.items()
            for values in [_accuracy(found, mixer, probe, length)]
        ]
        for mixer in mixers
    ]
    axes.imshow(grid, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(lengths)), [*lengths], rotation=20, ha="right", fontsize=8.5)
    axes.set_yticks(range(len(mixers)), [MIXERS[mixer] for mixer in mixers], fontsize=8.5)
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            if value == value:  # not run is no number
                color = "black" if value > 0.6 else "white"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=color)
    axes.set_title("Accuracy in %, examples as long as in training", loc="left", fontsize=10)
