"""The demo's picture: what it learned, how that compares, and what it costs to remember."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retnet.hub import write_atomic

if TYPE_CHECKING:
    from retnet.reproduce.demo import DemoResult

OURS, THEIRS = "tab:blue", "tab:gray"


def draw(result: "DemoResult", metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss, scores and memory side by side, to a PNG.

    Args:
        result: of the demo.
        metrics: of its training run.
        path: of the PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    # The object interface: no global state, no window, whatever the user's backend.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    learning, scores, memory = figure.subplots(1, 3)
    _draw_learning(learning, metrics)
    _draw_scores(scores, result.bits_per_byte)
    _draw_memory(memory, result)
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))


def _draw_learning(axes: Any, metrics: Sequence[dict[str, Any]]) -> None:
    trained = [m for m in metrics if "loss" in m]
    axes.plot([m["tokens"] / 1e6 for m in trained], [m["loss"] for m in trained], color=OURS)
    scored = [m for m in metrics if "valid_loss_carried" in m]
    axes.plot(
        [m["tokens"] / 1e6 for m in scored],
        [m["valid_loss_carried"] for m in scored],
        color="black",
        marker="o",
        linestyle="none",
        label="held-out (its first part)",
    )
    axes.set(title="Loss", xlabel="million tokens learned from", ylabel="nats per token")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_scores(axes: Any, bits: dict[str, float]) -> None:
    colors = [OURS if name == "RetNet" else THEIRS for name in bits]
    bars = axes.bar(list(bits), list(bits.values()), color=colors)
    axes.bar_label(bars, fmt="%.2f")
    axes.set(title="Held-out text", ylabel="bits per byte (less is better)")
    axes.margins(y=0.1)


def _draw_memory(axes: Any, result: "DemoResult") -> None:
    lengths, megabytes = result.text_lengths, [size / 1e6 for size in result.cache_bytes]
    axes.loglog(lengths, megabytes, color=THEIRS, marker="o", label="key-value cache, equal width")
    state = [result.state_bytes / 1e6] * len(lengths)
    axes.loglog(lengths, state, color=OURS, marker="o", label="RetNet's state")
    axes.set(title="Memory of one text", xlabel="tokens read", ylabel="megabytes")
    axes.grid(alpha=0.3)
    axes.legend()
