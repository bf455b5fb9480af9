"""The picture of decoding: what a token costs, and what is kept, after ever longer texts."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from retnet.bench.record import Record
from retnet.bench.tables import number, pivot
from retnet.evaluate import key_value_cache_bytes
from retnet.hub import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CACHE = "16-bit key-value cache\nof this width (computed)"
BLUE, ORANGE, GREY = "#2563eb", "#c2410c", "#6b7280"


def plot_decode(records: Iterable[Record], path: Path) -> None:
    """Draw time per token, and the state beside a key-value cache, against tokens read.

    Args:
        records: those of the bench `decode`, of one model, are drawn.
        path: of the PNG.

    Raises:
        ValueError: none of the records is of that bench.
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    records = [record for record in records if record.bench == "decode"]
    if not records:
        raise ValueError(f"no decode records to draw {path.name} from; run `retnet bench decode`")
    found = pivot(records, "num_layers", "d_model", "context")
    contexts = [int(context) for _, _, context in found]
    caches = [key_value_cache_bytes(int(L), int(D), int(T)) / 2**20 for L, D, T in found]
    states = [metrics["state_bytes"].median / 2**20 for metrics in found.values()]
    times = [metrics["token_ms"] for metrics in found.values()]

    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    figure.suptitle(_title(contexts, times[0].median, times[-1].median), fontsize=14)
    left, right = figure.subplots(1, 2)
    _frame(left, "Time per token, milliseconds", contexts)
    middle, low, high = ([getattr(t, name) for t in times] for name in ("median", "p20", "p80"))
    left.fill_between(contexts, low, high, color=BLUE, alpha=0.2, linewidth=0)
    left.plot(contexts, middle, color=BLUE, marker="o")
    left.set_ylim(0, 1.6 * max(high))
    for index in (0, -1):
        _label(left, contexts[index], middle[index], f"{number(middle[index])} ms", BLUE)

    _frame(right, "Kept of the text, MiB", contexts)
    right.set_yscale("log")
    right.plot(contexts, caches, color=ORANGE, marker="o", linestyle="--")
    right.plot(contexts, states, color=BLUE, marker="o")
    _label(right, contexts[-1], caches[-1], f"{number(caches[-1])} MiB", ORANGE)
    _label(right, contexts[-1], states[-1], f"{number(states[-1])} MiB", BLUE)
    _label(
        right, contexts[0], caches[0], "16-bit key-value cache\nof this width (computed)", ORANGE
    )
    _label(right, contexts[0], states[0], "state", BLUE)
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))


def _title(contexts: list[int], first: float, last: float) -> str:
    return (
        f"The token after {contexts[-1]:,} others takes {last / first:.2f} times as long "
        f"as the one after {contexts[0]:,}"
    )


def _frame(axes: "Axes", title: str, contexts: list[int]) -> None:
    """Log axis of tokens with readable ticks, and no box."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("tokens read before")
    axes.set_xscale("log")
    axes.set_xticks(contexts, [_short(n) for n in contexts])
    axes.minorticks_off()
    axes.margins(x=0.08)
    axes.grid(axis="y", color=GREY, alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def _label(axes: "Axes", x: float, y: float, text: str, color: str) -> None:
    axes.annotate(text, (x, y), xytext=(0, 7), textcoords="offset points", ha="center", color=color)


def _short(count: int) -> str:
    return f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)
