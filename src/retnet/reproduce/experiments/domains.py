"""What experiments that test on several domains share: measures, table, picture, remarks."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from retnet.bench.picture import GREY
from retnet.bench.table import Table
from retnet.reproduce.cell import Result
from retnet.reproduce.experiment import Setup
from retnet.reproduce.intervals import Estimate, difference, estimate
from retnet.reproduce.measures import Measure, TextLoss
from retnet.reproduce.sweep import Runs
from retnet.reproduce.training import DIVERGED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which the colour-blind tell apart."""

MARKERS = "os^Dv<>"

LOSS = "loss"

AT_EDGE = "*: the largest or smallest learning rate tried."
"""What the star of `Runs.rate_text` means."""

RETNET = ("retention", "RetNet")
"""What tables call it; its mark is larger."""


def domain_measures(setup: Setup) -> tuple[Measure, ...]:
    """The loss of each text in windows as long as those of training."""
    assert setup.texts is not None
    seq_len = setup.scale.train.seq_len
    return tuple(TextLoss(text=text, seq_len=seq_len) for text in setup.texts.tests)


def domains(results: Sequence[Result]) -> list[str]:
    """Names of the texts that were tested on, the domain that was learned first."""
    return [measure["name"] for measure in results[0].settings["measures"]]


def mean_elsewhere(run: Runs, away: Sequence[str]) -> dict[int, float]:
    """Mean loss over the other domains, by seed."""
    losses = [run.values(f"{LOSS} {name}") for name in away]
    return {
        seed: math.fsum(loss[seed] for loss in losses) / len(losses)
        for seed in run.results
        if losses and all(seed in loss for loss in losses)
    }


def losses_by_place(
    results: Sequence[Result],
) -> dict[str, Callable[[Runs], Mapping[int, float]]]:
    """Each seed's loss in domain and, where there are other domains, the mean of those."""
    home, *away = domains(results)
    places: dict[str, Callable[[Runs], Mapping[int, float]]] = {
        f"on {home}": lambda run: run.values(f"{LOSS} {home}")
    }
    if away:
        places["on other domains"] = lambda run: mean_elsewhere(run, away)
    return places


def gap_between(
    left: Runs | None, right: Runs | None, values: Callable[[Runs], Mapping[int, float]]
) -> Estimate | None:
    """How much larger the left one's values are, seed by seed; None without a common seed."""
    if left is None or right is None:
        return None
    return gap_of(values(left), values(right))


def gap_of(left: Mapping[int, float] | None, right: Mapping[int, float] | None) -> Estimate | None:
    """The same of values by seed."""
    if not left or not right or not left.keys() & right.keys():
        return None
    return difference(left, right)


def perplexities(run: Runs, domain: str) -> list[float]:
    """Perplexity of each seed."""
    return [math.exp(loss) for loss in run.values(f"{LOSS} {domain}").values()]


def perplexity_table(
    title: str, found: Mapping[str, Runs], names: Mapping[str, str], results: Sequence[Result]
) -> Table:
    """Models by their perplexity in domain, the least first."""
    texts = domains(results)
    order = sorted(found, key=lambda name: estimate(perplexities(found[name], texts[0])).mean)
    rows = []
    for name in order:
        run = found[name]
        settings = next(iter(run.results.values())).settings
        rows.append(
            (
                names.get(name, name),
                *(estimate(perplexities(run, text)).text() for text in texts),
                run.rate_text,
                f"{len(run.results)}",
                f"{settings['parameters'] / 1e6:.3f}",
            )
        )
    last = results[-1].settings
    seq_len = last["train"]["seq_len"]
    tokens = last["train"]["steps"] * last["train"]["batch_size"] * seq_len
    about = [
        f"{measure['name']} ({measure['documents']} documents, {measure['tokens']:,} tokens)"
        for measure in last["measures"]
    ]
    edge = any(found[name].at_edge for name in order)
    return Table(
        title=title,
        columns=("model", *texts, "learning rate", "seeds", "M parameters"),
        rows=rows,
        caption=(
            f"Trained on {texts[0]} for {tokens:,} tokens; windows of {seq_len} tokens, in the "
            f"tests too: {', '.join(about)}. Mean over seeds ± its standard error."
            + (f" {AT_EDGE}" if edge else "")
        ),
    )


def tuning_remarks(
    found: Mapping[str, Runs], names: Mapping[str, str], results: Sequence[Result]
) -> list[str]:
    """How learning rates were chosen, and which did not get through."""
    tried = []
    for name, run in found.items():
        if len(run.rates) > 1:
            losses = ", ".join(
                f"{rate:g}: {loss:.3f}" if math.isfinite(loss) else f"{rate:g}: diverged"
                for rate, loss in sorted(run.rates.items())
            )
            tried.append(f"{names.get(name, name)} {losses}")
    lost = []
    for labels in (result.labels for result in results if DIVERGED in result.metrics):
        name = names.get(str(labels["model"]), labels["model"])
        lost.append(f"{name} at {labels['learning_rate']:g}, seed {labels['seed']}")
    remarks = []
    if tried:
        remarks.append(
            "Validation loss of the first seed by learning rate, of which the best serves all "
            f"seeds: {'; '.join(tried)}."
        )
    if lost:
        remarks.append(f"Diverged, and left out: {'; '.join(lost)}.")
    return remarks


def draw_domains(
    figure: "Figure",
    found: Mapping[str, Runs],
    names: Mapping[str, str],
    results: Sequence[Result],
) -> None:
    """Perplexity of each model, one panel for each domain, as shares of the best."""
    texts = domains(results)
    order = sorted(
        found, key=lambda name: estimate(perplexities(found[name], texts[0])).mean, reverse=True
    )
    panels = figure.subplots(1, len(texts), sharey=True, squeeze=False)[0]
    for panel, text in zip(panels, texts, strict=True):
        for place, name in enumerate(order):
            values = estimate(perplexities(found[name], text))
            first = name in RETNET
            panel.errorbar(
                values.mean,
                place,
                xerr=values.error or 0.0,
                fmt="o",
                color=COLORS[0] if first else COLORS[1],
                markersize=7 if first else 5,
                capsize=3,
            )
            for value in perplexities(found[name], text):
                panel.plot(value, place, ".", color=GREY, markersize=3, zorder=0)
        panel.set_title(text, loc="left", fontsize=10.5)
        panel.set_xlabel("perplexity", fontsize=9)
        panel.set_yticks(range(len(order)), [names.get(name, name) for name in order])
        panel.margins(x=0.12)
        panel.grid(axis="x", color=GREY, alpha=0.2)
        panel.spines[["top", "right"]].set_visible(False)
