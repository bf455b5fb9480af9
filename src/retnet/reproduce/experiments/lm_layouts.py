"""Decoder-only, prefix-LM and encoder-decoder at equal cost: is it sight that helps, or weights?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from retnet.bench.picture import GREY
from retnet.bench.table import Table
from retnet.evaluate.context import SAME_NATS
from retnet.evaluate.probes import PROBES
from retnet.model import DecoderConfig
from retnet.reproduce.cell import Cell, Outcome, Place, Result
from retnet.reproduce.experiment import Plan, Report, Setup
from retnet.reproduce.experiments.domains import COLORS, MARKERS, gap_of, tuning_remarks
from retnet.reproduce.experiments.figure5 import resized
from retnet.reproduce.intervals import Claim, estimate
from retnet.reproduce.probing import INPUT_RANK, OPERATIONS, ProbeTask
from retnet.reproduce.scales import Scale
from retnet.reproduce.seq2seq import Seq2SeqConfig
from retnet.reproduce.spectra import TOKENS, WIDTH, random_spectra
from retnet.reproduce.sweep import Runs, runs, tuned
from retnet.reproduce.training import TUNED_BY, num_parameters
from retnet.train import TrainSection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN = "decoder-only"
PREFIX = "prefix-LM"
BOTH = "encoder-decoder"
CAUSAL = "encoder-decoder, causal encoder"
MIXED = "encoder-decoder, mixed encoder"
RETNET = "RetNet, decoder-only"

LAYOUTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    PREFIX: {"sight": "both"},
    BOTH: {"sight": "both", "shared": False},
    CAUSAL: {"sight": "causal", "shared": False},
    MIXED: {"sight": "mixed", "shared": False},
}
"""Options of `Seq2SeqConfig`; the two last are controls: the weights without the sight."""

TASKS = ("copying", "reverse", "sort")

SOURCE = 20
"""Tokens of an input; the answer has as many."""

ROWS = 32
"""Of a step."""

STEPS = {"smoke": 2, "cpu": 300, "gpu": 2000, "paper": 2000}
TEST_BATCHES = {"smoke": 1}
"""Of 32 rows; 8 at other scales."""

SPECTRA = "spectra"
"""The label of the cell that trains nothing."""

NOTHING = 1e-10
"""Singular values below are rounding, in float64."""


@dataclass(frozen=True, kw_only=True)
class SpectraTask:
    """Spectra of weights between random queries and keys, which need no training."""

    cost: float = 1.0
    kind: str = SPECTRA

    def settings(self) -> dict[str, Any]:
        """The sizes."""
        return {"tokens": TOKENS, "width": WIDTH}

    def terms(self) -> dict[str, Any]:
        """Whatever the budget is."""
        return self.settings()

    def run(self, place: Place) -> Outcome:  # noqa: ARG002 - it needs no folder
        """A line for each kind of matrix."""
        found = random_spectra()
        lines = [
            {
                "matrix": name,
                "values": [float(f"{value:.3e}") for value in spectrum.values.tolist()],
                "effective_rank": spectrum.effective_rank,
            }
            for name, spectrum in found.items()
        ]
        return Outcome({"matrices": float(len(lines))}, lines)

    def seconds(self, place: Place) -> float:  # noqa: ARG002 - it needs no folder
        """About one."""
        return self.cost


class LmLayouts:
    """See the module."""

    name = "lm-layouts"
    title = "Decoder-only, prefix-LM, encoder-decoder"
    about = (
        f"An input of {SOURCE} letters is to be copied, reversed or sorted. Transformers of equal "
        "width and depth read it in five ways: with the weights that also write the answer, each "
        "letter seeing those before it (decoder-only) or all (prefix-LM); or with weights of their "
        "own (encoder-decoder), which are twice the parameters at about the same work. If seeing "
        "all letters is what helps, prefix-LM should win; if it is the weights, an encoder that "
        "looks back only should do no worse than one that looks both ways. RetNet, which can look "
        "back only, stands beside them. The loss is that of the answer alone."
    )
    reads_texts = False

    def plan(self, setup: Setup, done: Mapping[str, Result]) -> Plan:
        """Each layout on each task, and the spectra."""
        pairs = {
            _name(layout, task): (layout, task)
            for layout in setup.chosen((*LAYOUTS, RETNET))
            for task in TASKS
        }

        def cell(name: str, rate: float, seed: int) -> Cell:
            layout, task = pairs[name]
            return Cell(
                labels={"model": name, "learning_rate": rate, "seed": seed},
                task=_task(setup.scale, layout, task, rate, seed),
            )

        plan = tuned(dict.fromkeys(pairs, ""), cell, setup.scale, done)
        spectra = Cell(labels={"model": SPECTRA, "seed": 0}, task=SpectraTask())
        return replace(plan, cells=[spectra, *plan.cells])

    def report(self, results: Sequence[Result]) -> Report:
        """Loss and accuracy by layout, ranks, and whether sight or weights helped."""
        found = runs([r for r in results if r.labels["model"] != SPECTRA])
        spectra = [line for r in results for line in r.lines]
        return Report(
            ours=[
                _table("Nats per letter of the answer", found, _loss),
                _table("Letters right, in %", found, _right),
                _rank_table(found),
                _spectra_table(spectra),
            ],
            papers=[],
            claims=_claims(found),
            remarks=[
                "Su (kexue.fm/archives/9529 and 9547) argues that decoder-only models do no worse "
                "than prefix-LMs, and that an encoder-decoder's lead is its parameters'; and that "
                "a causal softmax always has full rank, while weights that look both ways through "
                "few channels have not. Here the smallest singular values of the former count as "
                "none. Spectra alone show neither to be the reason for anything.",
                *_ceilings(found),
                *tuning_remarks(found, {}, results),
            ],
            draw=lambda figure: _draw(figure, found, spectra),
        )


def _task(scale: Scale, layout: str, task: str, rate: float, seed: int) -> ProbeTask:
    vocab_size, length = PROBES[task].vocab_size, 2 * SOURCE
    base = resized(scale.model, 1, 2, 1, 2)
    model: DecoderConfig | Seq2SeqConfig = replace(base, vocab_size=vocab_size, dropout=0.0)
    if layout != RETNET:
        model = Seq2SeqConfig(
            vocab_size=vocab_size,
            prefix=SOURCE,
            max_tokens=length,
            d_model=base.d_model,
            num_layers=base.num_layers,
            width=_width(base),
            **LAYOUTS[layout],
        )
    steps = STEPS[scale.name]
    return ProbeTask(
        model=model,
        probe=task,
        lengths=(length,),
        train=TrainSection(
            steps=steps,
            batch_size=ROWS,
            seq_len=length,
            learning_rate=rate,
            warmup_steps=max(steps // 10, 1),
        ),
        seed=seed,
        test_batches=TEST_BATCHES.get(scale.name, 8),
    )


@cache
def _width(base: DecoderConfig) -> int:
    """Of the GLU with which a Transformer of one stack has as many parameters as RetNet."""
    D = base.d_model
    a_layer = num_parameters(base) // base.num_layers
    return round((a_layer - 4 * D * D) / (3 * D))


def _name(layout: str, task: str) -> str:
    return f"{layout} on {task}"


def _loss(run: Runs) -> dict[int, float]:
    return run.values(TUNED_BY)


def _right(run: Runs) -> dict[int, float]:
    found = run.values(f"accuracy @ {2 * SOURCE}")
    return {seed: 100 * share for seed, share in found.items()}


def _losses(found: Mapping[str, Runs], layout: str, task: str) -> dict[int, float]:
    """By seed; empty where it was not run."""
    run = found.get(_name(layout, task))
    return {} if run is None else _loss(run)


def _layouts(found: Mapping[str, Runs]) -> list[str]:
    """Those that were run on some task."""
    return [
        layout
        for layout in (*LAYOUTS, RETNET)
        if any(_name(layout, task) in found for task in TASKS)
    ]


def _table(title: str, found: Mapping[str, Runs], values: Any) -> Table:
    rows = []
    for layout in _layouts(found):
        mine = [found.get(_name(layout, task)) for task in TASKS]
        some = next(run for run in mine if run is not None)
        result = next(iter(some.results.values()))
        rows.append(
            (
                layout,
                *("" if run is None else estimate([*values(run).values()]).text(3) for run in mine),
                f"{result.settings['parameters'] / 1e6:.3f}",
                f"{result.metrics[OPERATIONS] / 1e6:.1f} M",
            )
        )
    return Table(
        title=title,
        columns=("layout", *TASKS, "M parameters", "operations"),
        rows=rows,
        caption=(
            "Mean over seeds ± its standard error, on new examples. Parameters without embeddings; "
            "operations are those of a forward pass over input and answer."
        ),
    )


def _rank_table(found: Mapping[str, Runs]) -> Table:
    """How much the input's tokens tell apart, by layer of the trained models."""
    ranks = {
        layout: {
            task: {
                metric: values
                for metric in next(iter(run.results.values())).metrics
                if metric.startswith(INPUT_RANK) and (values := run.values(metric))
            }
            for task in TASKS
            if (run := found.get(_name(layout, task))) is not None
        }
        for layout in LAYOUTS
    }
    rows = [
        (
            layout,
            *(
                " / ".join(
                    estimate([*values.values()]).text(1)
                    for values in by_task.get(task, {}).values()
                )
                for task in TASKS
            ),
        )
        for layout, by_task in ranks.items()
        if by_task
    ]
    return Table(
        title="Effective rank of the weights between the input's tokens, after training",
        columns=("layout", *TASKS),
        rows=rows,
        caption=(
            f"First layer / second layer; mean over heads and rows, of at most {SOURCE}. The "
            "effective rank is exp of the entropy of the singular values (Roy and Vetterli 2007)."
        ),
    )


def _spectra_table(spectra: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            line["matrix"],
            f"{sum(value > NOTHING for value in line['values'])}",
            f"{line['effective_rank']:.1f}",
            f"{min(line['values']):.1e}",
        )
        for line in spectra
    ]
    return Table(
        title="Spectra of weights between random queries and keys",
        columns=("weights", "rank", "effective rank", "least singular value / largest"),
        rows=rows,
        caption=(
            f"{TOKENS} tokens, {WIDTH} channels, before any training; rank counts singular values "
            f"above {NOTHING:g} of the largest."
        ),
    )


def _claims(found: Mapping[str, Runs]) -> list[Claim]:
    """What is said of sight and of weights; each is a loss less another, task by task."""
    sentences = {
        "an input read both ways by shared weights helps, on {}": (PLAIN, PREFIX),
        "weights of its own for the input help, on {}": (PLAIN, BOTH),
        "an encoder that looks back only does better than one that looks both ways, on {}": (
            BOTH,
            CAUSAL,
        ),
        "an encoder that looks back in half of its heads and ahead in the others does better than "
        "one that looks both ways, on {}": (BOTH, MIXED),
        "RetNet does better than the decoder-only Transformer, on {}": (PLAIN, RETNET),
    }
    return [
        Claim(
            says=says,
            name=task,
            gap=gap_of(_losses(found, worse, task), _losses(found, better, task)),
        )
        for says, (worse, better) in sentences.items()
        for task in TASKS
    ]


def _ceilings(found: Mapping[str, Runs]) -> list[str]:
    """Where the layout to be beaten leaves less to win than what counts."""
    solved = [
        f"{layout} on {task}"
        for layout in (PLAIN, BOTH)
        for task in TASKS
        if (losses := _losses(found, layout, task))
        and estimate([*losses.values()]).mean < SAME_NATS
    ]
    if not solved:
        return []
    return [
        f"The tasks are too easy to show a lead over {', '.join(solved)}: the loss there is below "
        f"the {SAME_NATS:g} nats that count."
    ]


def _draw(
    figure: "Figure", found: Mapping[str, Runs], spectra: Sequence[Mapping[str, Any]]
) -> None:
    """Losses by layout on the left, spectra on the right."""
    left, right = figure.subplots(1, 2)
    layouts = _layouts(found)
    for task, color, marker in zip(TASKS, COLORS, MARKERS, strict=False):
        places, means = [], []
        for place, layout in enumerate(layouts):
            values = [*_losses(found, layout, task).values()]
            left.plot(values, [place] * len(values), ".", color=color, alpha=0.4, markersize=4)
            if values:
                places.append(place)
                means.append(estimate(values).mean)
        left.plot(means, places, marker, color=color, label=task, markersize=6)
    left.set_xscale("log")
    left.set_yticks(range(len(layouts)), [x.replace(", ", ",\n") for x in layouts], fontsize=8.5)
    left.invert_yaxis()
    left.set_xlabel("nats per letter of the answer", fontsize=9)
    left.legend(fontsize=8.5, frameon=False)
    left.set_title("Loss by layout; small dots are seeds", loc="left", fontsize=10)
    for line, color in zip(spectra, COLORS, strict=False):
        numbers = range(1, len(line["values"]) + 1)
        right.plot(numbers, line["values"], color=color, label=line["matrix"])
    right.set_yscale("log")
    right.set_ylim(NOTHING, 2.0)
    right.set_xlabel("number of the singular value", fontsize=9)
    right.set_title("Spectra before training", loc="left", fontsize=10)
    right.legend(fontsize=8.5, frameon=False)
    for axes in (left, right):
        axes.grid(color=GREY, alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
