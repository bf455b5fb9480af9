"""What experiments on growing context share: measures, table, picture."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retnet.bench.picture import GREY, tokens_text
from retnet.bench.table import Table
from retnet.evaluate.context import SAME_NATS, verdict_of
from retnet.evaluate.losses import mean_interval
from retnet.reproduce.cell import Result
from retnet.reproduce.experiments.domains import AT_EDGE, COLORS, MARKERS
from retnet.reproduce.intervals import Estimate, estimate
from retnet.reproduce.measures import ContextLoss, context_metric
from retnet.reproduce.sweep import Runs
from retnet.reproduce.texts import StoredText

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Mapping[int, Mapping[int, float]]
"""Loss by length of context and seed."""

SAMPLES = 64


def doubling(shortest: int, longest: int) -> tuple[int, ...]:
    """Lengths from the shortest, each twice the one before.

    Example:
        >>> doubling(256, 1500)
        (256, 512, 1024)
    """
    return tuple(shortest << n for n in range(max(longest // shortest, 1).bit_length()))


def long_text(texts: Sequence[StoredText], longest: int) -> StoredText:
    """The first text with two documents that are longer; else the longest."""
    enough = [text for text in texts if text.longest > longest]
    return enough[0] if enough else max(texts, key=lambda text: text.longest)


def context_measure(text: StoredText, contexts: Sequence[int], segment: int) -> ContextLoss:
    """The loss at those contexts that the text's documents are long enough for.

    Raises:
        ValueError: not even two are.
    """
    fits = tuple(context for context in contexts if context < text.longest)
    if len(fits) < 2:
        raise ValueError(
            f"{text.name} has no two documents of more than {contexts[1]} tokens, so it cannot "
            "show what more context is good for; name longer documents in the file of --data"
        )
    return ContextLoss(text=text, contexts=fits, segment=segment, most_samples=SAMPLES)


def tested(results: Sequence[Result]) -> list[Mapping[str, Any]]:
    """Settings of the measures of contexts, all with the same contexts."""
    return [m for m in results[-1].settings["measures"] if m["measure"] == "context"]


def curve_of(
    run: Runs, measures: Iterable[Mapping[str, Any]], prefix: str = ""
) -> dict[int, dict[int, float]]:
    """Mean loss over the texts, by length of context and seed.

    Args:
        run: of a model.
        measures: of `tested`.
        prefix: of the metrics of a variant.
    """
    measures = list(measures)
    found: dict[int, dict[int, float]] = {}
    for context in sorted({c for measure in measures for c in measure["contexts"]}):
        values = [run.values(prefix + context_metric(m["name"], context)) for m in measures]
        seeds = [seed for seed in run.results if all(seed in value for value in values)]
        if seeds:
            found[context] = {
                seed: math.fsum(value[seed] for value in values) / len(values) for seed in seeds
            }
    return found


def context_table(
    title: str, found: Mapping[str, Curve], rates: Mapping[str, str], caption: str
) -> Table:
    """Perplexity by length of context.

    Args:
        title: of the table.
        found: by method, in the order of the rows.
        rates: what stands in the last column of each.
        caption: of the table.
    """
    if any(rate.endswith("*") for rate in rates.values()):
        caption = f"{caption} {AT_EDGE}"
    contexts = sorted({context for curve in found.values() for context in curve})
    rows = [
        (
            name,
            *(
                estimate([math.exp(loss) for loss in curve[context].values()]).text()
                if context in curve
                else ""
                for context in contexts
            ),
            growth_verdict(curve),
            rates[name],
        )
        for name, curve in found.items()
    ]
    columns = ("method", *map(tokens_text, contexts), "more context", "learning rate")
    return Table(title=title, columns=columns, rows=rows, caption=caption)


def growth_verdict(curve: Curve) -> str:
    """Improves, flat, breaks or "cannot tell", by intervals over seeds; nothing for fewer than two.

    Flat is what surely neither gains nor loses as much as counts.
    """
    contexts = sorted(curve)
    seeds = sorted(set.intersection(*(set(curve[context]) for context in contexts)))
    if len(seeds) < 2 or len(contexts) < 2:
        return ""
    means = {c: math.fsum(curve[c][seed] for seed in seeds) for c in contexts[:-1]}
    best = min(means, key=lambda context: means[context])
    gain, after_best = (
        mean_interval([curve[contexts[-1]][seed] - curve[other][seed] for seed in seeds])
        for other in (contexts[0], best)
    )
    said = verdict_of(gain, after_best)
    sure = gain.low > -SAME_NATS and after_best.high < SAME_NATS
    return said if said != "flat" or sure else "cannot tell"


def draw_contexts(
    figure: "Figure",
    found: Mapping[str, Curve],
    bold: Sequence[str],
    panels: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Perplexity against length of context, a line for each method; the worst leave the frame.

    Args:
        figure: to draw in.
        found: losses by seed at each length, of each method.
        bold: those that others are compared with; in all panels.
        panels: the methods of each panel, by its title; without, all are in one.
    """
    means = {
        name: {c: estimate([math.exp(x) for x in curve[c].values()]) for c in sorted(curve)}
        for name, curve in found.items()
    }
    worst_first = sorted(found, key=lambda name: means[name][max(means[name])].mean, reverse=True)
    panels = panels or {"": found}
    figure.set_figwidth((1 + len(panels)) / 2 * figure.get_figwidth())
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, names) in zip(drawn, panels.items(), strict=True):
        shown = [name for name in worst_first if name in names or name in bold]
        _draw_lines(axes, {name: means[name] for name in shown}, bold)
        axes.set_title(title, loc="left", fontsize=10)
    everywhere = [mean.mean for curve in means.values() for mean in curve.values()]
    low = min(everywhere)
    drawn[0].set_ylim(0.9 * low, min(1.1 * max(everywhere), 20 * low))
    drawn[0].set_ylabel("perplexity of the same last tokens")


def _draw_lines(
    axes: "Axes", means: Mapping[str, Mapping[int, Estimate]], bold: Sequence[str]
) -> None:
    """Lines and their legend, in the order of `means`; bold ones have colours of their own."""
    thin = [name for name in means if name not in bold]
    own, others = COLORS[: len(bold)], COLORS[len(bold) :]
    for name, curve in means.items():
        number = (bold if name in bold else thin).index(name)
        colors = own if name in bold else others
        axes.errorbar(
            list(curve),
            [mean.mean for mean in curve.values()],
            yerr=[mean.error or 0.0 for mean in curve.values()],
            color=colors[number % len(colors)],
            marker=MARKERS[number // len(colors) % len(MARKERS)],
            linewidth=2.4 if name in bold else 1.1,
            markersize=4.5,
            capsize=2,
            label=name,
        )
    ticks = sorted({context for curve in means.values() for context in curve})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [tokens_text(tick) for tick in ticks])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("{x:,g}")
    axes.set_xlabel("tokens of context")
    axes.grid(axis="y", color=GREY, alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7.5, frameon=False)
