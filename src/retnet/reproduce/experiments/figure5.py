"""Figure 5 of the paper: loss against size, RetNet and the Transformer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from retnet.bench.picture import GREY
from retnet.bench.table import Table
from retnet.model import DecoderConfig, LayerConfig, rival
from retnet.reproduce.cell import Result
from retnet.reproduce.experiment import Plan, Report, Setup
from retnet.reproduce.experiments.domains import (
    COLORS,
    MARKERS,
    domain_measures,
    domains,
    gap_of,
    tuning_remarks,
)
from retnet.reproduce.intervals import Claim, Estimate, estimate
from retnet.reproduce.sweep import Entrant, Runs, runs, sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAMILIES = ("RetNet", "Transformer")

SIZES = ((1, 2, 1, 2), (1, 1, 1, 2), (1, 1, 1, 1), (3, 2, 1, 1))
"""Width and depth as shares of the scale's own, numerators and denominators."""

HEAD = 64

Points = Mapping[str, Mapping[int, Runs]]
"""Runs by family and number of parameters."""


class Figure5:
    """See the module."""

    name = "figure5"
    title = "Figure 5: loss against size"
    about = (
        "Four sizes of RetNet and of the Transformer, each of the two with as many parameters as "
        "the other, each with its own best learning rate. A line through the logarithms of size "
        "and loss gives the exponent by which the loss falls. All sizes read the same tokens."
    )
    reads_texts = True

    def plan(self, setup: Setup, done: Mapping[str, Result]) -> Plan:
        """Both families at each size, the smallest first."""
        return sweep(setup, _entrants(setup.scale.model), domain_measures(setup)[:1], done)

    def report(self, results: Sequence[Result]) -> Report:
        """Loss by size, the fitted exponents, and who leads where."""
        found = runs(results)
        metric = f"loss {domains(results)[0]}"
        points = _points(found)
        exponents = {family: _exponents(points[family], metric) for family in points}
        return Report(
            ours=[_table(points, exponents, metric)],
            papers=[],
            claims=_claims(points, exponents, metric),
            remarks=[
                "The paper gives this figure as a picture only: RetNet leads from about 2 billion "
                "parameters on.",
                *tuning_remarks(found, {}, results),
            ],
            draw=lambda figure: _draw(figure, points, metric),
        )


@cache
def _entrants(base: DecoderConfig) -> dict[str, Entrant]:
    entrants = {}
    for size in SIZES:
        config = resized(base, *size)
        heads = max(config.d_model // HEAD, 1)
        shape = f"{config.d_model} x {config.num_layers}"
        entrants[f"{FAMILIES[0]} {shape}"] = Entrant(config=config)
        entrants[f"{FAMILIES[1]} {shape}"] = Entrant(
            config=rival(config, "attention", num_heads=heads)
        )
    return entrants


def resized(
    config: DecoderConfig, wide: int, of_width: int, deep: int, of_depth: int
) -> DecoderConfig:
    """The same decoder with another width and depth; heads stay as wide as they are.

    Args:
        config: of one kind of layer, of retention.
        wide: of `of_width` parts of its width.
        of_width: see there.
        deep: of `of_depth` parts of its depth.
        of_depth: see there.
    """
    [layer] = config.layers
    mixer, channel = cast(Any, layer.mixer), cast(Any, layer.channel)

    def part(width: int | None) -> int | None:
        return None if width is None else width * wide // of_width

    heads = max(mixer.num_heads * wide // of_width, 1)
    mixer = replace(mixer, num_heads=heads, value_width=part(mixer.value_width))
    return replace(
        config,
        d_model=config.d_model * wide // of_width,
        layers=(
            LayerConfig(
                mixer=mixer,
                channel=replace(channel, width=part(channel.width)),
                repeat=max(layer.repeat * deep // of_depth, 1),
            ),
        ),
    )


def _points(found: Mapping[str, Runs]) -> dict[str, dict[int, Runs]]:
    """By family and parameters; a Transformer counts as large as the RetNet it stands beside."""
    points: dict[str, dict[int, Runs]] = {}
    for family in FAMILIES:
        mine = {}
        for name, run in found.items():
            if name.startswith(family):
                twin = found.get(name.replace(family, FAMILIES[0]), run)
                settings = next(iter(twin.results.values())).settings
                mine[settings["parameters"]] = run
        points[family] = dict(sorted(mine.items()))
    return points


def _exponents(runs_by_size: Mapping[int, Runs], metric: str) -> dict[int, float]:
    """By seed: how steeply the logarithm of the loss falls with that of the size."""
    losses = {size: run.values(metric) for size, run in runs_by_size.items()}
    if len(losses) < 2:
        return {}
    seeds = set.intersection(*(set(values) for values in losses.values()))
    return {
        seed: -float(
            np.polyfit(np.log([*losses]), np.log([v[seed] for v in losses.values()]), 1)[0]
        )
        for seed in sorted(seeds)
    }


def _table(points: Points, exponents: Mapping[str, Mapping[int, float]], metric: str) -> Table:
    sizes = sorted({size for mine in points.values() for size in mine})
    rows = []
    for family, mine in points.items():
        if mine:
            cells = (
                estimate([*mine[size].values(metric).values()]).text(3) if size in mine else ""
                for size in sizes
            )
            fitted = exponents[family]
            exponent = estimate([*fitted.values()]).text(4) if fitted else ""
            rows.append((family, *cells, exponent))
    return Table(
        title="Loss by size, nats per token",
        columns=("model", *(f"{size / 1e6:.3g} M" for size in sizes), "exponent"),
        rows=rows,
        caption=(
            "Parameters without embeddings. Mean over seeds ± its standard error. The exponent b "
            "of loss = c N^-b is fitted for each seed."
        ),
    )


def _claims(
    points: Points, exponents: Mapping[str, Mapping[int, float]], metric: str
) -> list[Claim]:
    ours, theirs = (points[family] for family in FAMILIES)
    claims = [
        Claim(
            says="RetNet's loss falls faster with size than the Transformer's",
            gap=gap_of(*(exponents[family] for family in FAMILIES)),
            unit="exponent",
            least=0.005,
        )
    ]
    for size, run in ours.items():
        gap: Estimate | None = None
        if size in theirs:
            gap = gap_of(theirs[size].values(metric), run.values(metric))
        claims.append(
            Claim(
                says="RetNet predicts better than the Transformer with {} parameters",
                name=f"{size / 1e6:.3g} M",
                gap=gap,
            )
        )
    return claims


def _draw(figure: "Figure", points: Points, metric: str) -> None:
    axes = figure.subplots()
    for number, (family, mine) in enumerate(points.items()):
        if not mine:
            continue
        sizes = [*mine]
        means = [estimate([*run.values(metric).values()]) for run in mine.values()]
        axes.errorbar(
            sizes,
            [mean.mean for mean in means],
            yerr=[mean.error or 0.0 for mean in means],
            fmt=MARKERS[number],
            color=COLORS[number],
            capsize=3,
            label=family,
        )
        if len(sizes) > 1:
            slope, height = np.polyfit(np.log(sizes), np.log([mean.mean for mean in means]), 1)
            line = np.geomspace(0.8 * sizes[0], 1.25 * sizes[-1], 50)
            axes.plot(line, np.exp(height) * line**slope, color=COLORS[number], alpha=0.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _place: f"{value / 1e6:g} M")
    axes.xaxis.set_minor_formatter("")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("parameters without embeddings")
    axes.set_ylabel("loss in domain, nats per token")
    axes.grid(color=GREY, alpha=0.2, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
