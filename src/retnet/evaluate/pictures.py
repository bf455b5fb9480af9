"""Pictures of what was found out, one for each section that has something to see."""

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from retnet.evaluate.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "tab:blue", "tab:orange", "tab:gray"

FEWEST = 8
"""Tokens whose mean loss says anything."""

SMALLEST = 0.02
"""Nats that a picture of growing context spans at least, up and down."""


def draw(evaluation: Evaluation, key: str) -> bytes | None:
    """Draw a section's picture as PNG; None where it has none.

    Args:
        evaluation: what was found out.
        key: of the section.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    if key not in PICTURES:
        return None
    # The object interface: no global state, no window, whatever the user's backend.
    from matplotlib.figure import Figure

    rows = len(evaluation.tasks) if key == "tasks" else 0
    figure = Figure(figsize=(7.5, max(3.4, 0.5 + 0.32 * rows)), layout="constrained")
    axes = figure.subplots()
    PICTURES[key](axes, evaluation)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _text(axes: "Axes", evaluation: Evaluation) -> None:
    """Loss by what was read before: what a model learns from its context."""
    for row in evaluation.text:
        points = [p for p in row.score.by_position if p.num_tokens >= FEWEST]
        x = [(p.first + p.last) / 2 + 1 for p in points]
        errors = [1.96 * p.standard_error for p in points]
        axes.errorbar(
            x, [p.nats for p in points], errors, marker="o", markersize=3, capsize=2,
            label=f"memory {row.memory}",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens read before, and 1", ylabel="nats per token")
    axes.set_title("Loss by position (bars: 95 %, as if tokens were independent)", fontsize=10)


def _contexts(axes: "Axes", evaluation: Evaluation) -> None:
    growth = evaluation.contexts
    assert growth is not None
    spread = [
        [gain.mean - gain.low for gain in growth.gains],
        [gain.high - gain.mean for gain in growth.gains],
    ]
    axes.errorbar(growth.contexts, growth.nats, spread, marker="o", capsize=3, color=BLUE)
    axes.axhline(growth.nats[0], color=GREY, linewidth=1, linestyle="--")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, growth.nats[0] - SMALLEST), max(high, growth.nats[0] + SMALLEST))
    axes.set_xscale("log", base=2)
    axes.set_xticks(growth.contexts, [f"{context:,}" for context in growth.contexts])
    axes.minorticks_off()
    axes.set(xlabel="tokens read", ylabel=f"nats, last {growth.segment} tokens")
    axes.set_title(f"{growth.verdict} (bars: 95 % of the paired difference)", fontsize=10)


def _needles(axes: "Axes", evaluation: Evaluation) -> None:
    x = [100 * needle.depth for needle in evaluation.needles]
    gains = [needle.gain for needle in evaluation.needles]
    spread = [[g.mean - g.low for g in gains], [g.high - g.mean for g in gains]]
    axes.errorbar(x, [g.mean for g in gains], spread, marker="o", capsize=3, color=BLUE)
    axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
    axes.set(xlabel="depth of the number in the text (%)", ylabel="nats gained by being told")
    length = evaluation.needles[0].length
    axes.set_title(f"Texts of {length:,} tokens (bars: 95 %)", fontsize=10)


def _heads(axes: "Axes", evaluation: Evaluation) -> None:
    """Each head's influence over the tokens since; slower decays are darker."""
    decays = [m.decay for m in evaluation.heads if m.decay is not None]
    ranks = {decay: rank for rank, decay in enumerate(sorted(set(decays)), 1)}
    for memory in evaluation.heads:
        shade = 1.0 if memory.decay is None else ranks[memory.decay] / len(ranks)
        steps = range(len(memory.influence))
        tokens = memory.decay_tokens
        axes.loglog(
            [1.5 * 2**step for step in steps],
            [max(value, 1e-12) for value in memory.influence],
            color=BLUE,
            alpha=0.25 + 0.75 * shade,
            marker=".",
            linewidth=1,
        )
        if tokens is not None and math.isfinite(tokens):
            axes.axvline(tokens, color=GREY, linewidth=0.6, linestyle=":")
    axes.set(xlabel="tokens since the exchange", ylabel="divergence (nats)")
    axes.set_title("A line for each head, dark: slow decay; dots: 1 / (1 - decay)", fontsize=10)


def _probes(axes: "Axes", evaluation: Evaluation) -> None:
    for number, name in enumerate(dict.fromkeys(row.name for row in evaluation.probes)):
        rows = [row for row in evaluation.probes if row.name == name]
        axes.errorbar(
            [row.length for row in rows],
            [row.score.accuracy for row in rows],
            [1.96 * row.score.standard_error for row in rows],
            marker="o", capsize=2, color=f"C{number}", label=name,
        )  # fmt: skip
        axes.axhline(rows[0].chance, color=f"C{number}", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens", ylabel="share right", ylim=(-0.02, 1.02))
    axes.set_title("Probes (bars: 95 %; dots: chance)", fontsize=10)


def _tasks(axes: "Axes", evaluation: Evaluation) -> None:
    scores = [score for score in evaluation.tasks if score.chance is not None]
    places = range(len(scores))
    axes.barh(
        places,
        [score.value for score in scores],
        xerr=[1.96 * score.standard_error for score in scores],
        color=[BLUE if score.metric == "acc" else "lightskyblue" for score in scores],
        capsize=2,
    )
    chances = [score.chance or 0.0 for score in scores]
    axes.scatter(chances, places, marker="|", s=220, color=ORANGE, zorder=3, label="chance")
    axes.set_yticks(places, [f"{score.task} {score.metric}" for score in scores], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="share right (bars: 95 %)", xlim=(0, 1))


PICTURES: "dict[str, Callable[[Axes, Evaluation], None]]" = {
    "text": _text,
    "contexts": _contexts,
    "needles": _needles,
    "heads": _heads,
    "probes": _probes,
    "tasks": _tasks,
}
