"""The picture of a run: training loss above, bits per byte of held-out text below."""

from collections.abc import Sequence
from pathlib import Path

from retnet.hub import write_atomic
from retnet.train.metrics import Metrics

VALIDATION = {
    "valid_bits_per_byte_carried": "state carried through",
    "valid_bits_per_byte": "windows that start with nothing",
}


def plot_metrics(metrics: Sequence[Metrics], path: Path, title: str) -> None:
    """Draw metrics to a PNG, over the tokens learned from.

    Args:
        metrics: lines of a metrics file.
        path: of the PNG.
        title: for the head of the picture.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    # The object interface: no global state, no window, whatever the user's backend.
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    figure.suptitle(title)
    trained = [m for m in metrics if "loss" in m]
    tokens, losses = [m["tokens"] for m in trained], [m["loss"] for m in trained]
    upper.plot(tokens, losses, color="tab:blue", alpha=0.3, linewidth=1, label="as logged")
    upper.plot(tokens, smooth(losses), color="tab:blue", label="smoothed")
    upper.set_ylabel("training loss (nats per token)")
    for key, label in VALIDATION.items():
        scored = [m for m in metrics if key in m]
        if scored:
            label = f"{label}: {scored[-1][key]:.3f} at the end"
            x, y = [m["tokens"] for m in scored], [m[key] for m in scored]
            lower.plot(x, y, marker="o", markersize=3, label=label)
    lower.set_ylabel("held-out bits per byte")
    lower.set_xlabel("tokens learned from")
    lower.xaxis.set_major_formatter(EngFormatter(sep=" "))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))


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
