"""Pictures of runs: training loss above, bits per byte of held-out text below, over tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retnet.hub import write_atomic
from retnet.train.metrics import Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CARRIED = "valid_bits_per_byte_carried"
VALIDATION = {
    CARRIED: "state carried through",
    "valid_bits_per_byte": "windows that start with nothing",
}

NUM_COLORS = 10
"""Of matplotlib's cycle; then they come again in another kind of line."""


def plot_metrics(metrics: Sequence[Metrics], path: Path, title: str) -> None:
    """Draw metrics to a PNG, over the tokens learned from.

    Args:
        metrics: lines of a metrics file.
        path: of the PNG.
        title: for the head of the picture.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure, upper, lower = _panels(title)
    tokens, losses = curve(metrics, "loss")
    upper.plot(tokens, losses, color="tab:blue", alpha=0.3, linewidth=1, label="as logged")
    upper.plot(tokens, smooth(losses), color="tab:blue", label="smoothed")
    for key, label in VALIDATION.items():
        x, y = curve(metrics, key)
        if y:
            lower.plot(x, y, marker="o", markersize=3, label=f"{label}: {y[-1]:.3f} at the end")
    for axes in (upper, lower):
        if axes.lines:
            axes.legend()
    _save(figure, path)


def plot_runs(runs: Mapping[str, Sequence[Metrics]], path: Path, title: str) -> None:
    """Draw the curves of several runs to one PNG: smoothed losses, and bits with state carried.

    Args:
        runs: lines of metrics files by the name of the run, in the order of the legend.
        path: of the PNG.
        title: for the head of the picture.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure, upper, lower = _panels(title, width=10.0)  # the legend stands beside the curves
    for number, (name, metrics) in enumerate(runs.items()):
        color = f"C{number % NUM_COLORS}"
        line = ("-", "--", ":", "-.")[number // NUM_COLORS % 4]
        tokens, losses = curve(metrics, "loss")
        x, y = curve(metrics, CARRIED)
        label = f"{name}: {y[-1]:.3f}" if y else name
        upper.plot(tokens, smooth(losses), color=color, linestyle=line, label=label)
        lower.plot(x, y, color=color, linestyle=line, marker="o", markersize=3)
    figure.legend(
        *upper.get_legend_handles_labels(),
        loc="outside right upper",
        title="bits per byte at the end",
        fontsize="small",
        title_fontsize="small",
    )
    _save(figure, path)


def curve(metrics: Sequence[Metrics], key: str) -> tuple[list[int], list[float]]:
    """Tokens and values of the lines that have a key."""
    lines = [line for line in metrics if line.get(key) is not None]
    return [line["tokens"] for line in lines], [line[key] for line in lines]


def smooth(values: Sequence[float]) -> list[float]:
    """Mean of each value and its neighbours, the same number on both sides: no lag.

    The window grows with the number of values; below a hundred it is one value.
    """
    reach = len(values) // 100
    means = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)
        window = values[i - near : i + near + 1]
        means.append(sum(window) / len(window))
    return means


def _panels(title: str, width: float = 8.0) -> "tuple[Figure, Axes, Axes]":
    # The object interface: no global state, no window, whatever the user's backend.
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(width, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    figure.suptitle(title)
    upper.set_ylabel("training loss (nats per token)")
    lower.set_ylabel("held-out bits per byte")
    lower.set_xlabel("tokens learned from")
    lower.xaxis.set_major_formatter(EngFormatter(sep=" "))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure, upper, lower


def _save(figure: "Figure", path: Path) -> None:
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
