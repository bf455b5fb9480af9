"""The picture of decoding: what a token costs, and what is kept, after ever longer texts."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
    contexts = [float(context) for _, _, context in found]
    caches = [key_value_cache_bytes(int(L), int(D), int(T)) / 2**20 for L, D, T in found]
    states = [metrics["state_bytes"].median / 2**20 for metrics in found.values()]
    times = [metrics["token_ms"] for metrics in found.values()]

    figure = Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    figure.suptitle(_title(contexts, times[0].median, times[-1].median), fontsize=14)
    figure.supxlabel(_footer(records[-1]), fontsize=8, color=GREY)
    left, right = figure.subplots(1, 2)
    _frame(left, "Time per token, ms (band: middle three fifths)", contexts)
    middle, low, high = ([getattr(t, name) for t in times] for name in ("median", "p20", "p80"))
    left.fill_between(contexts, low, high, color=BLUE, alpha=0.2, linewidth=0)
    left.plot(contexts, middle, color=BLUE, marker="o")
    left.set_ylim(0, 1.6 * max(high))
    for index in (0, -1):
        _label(left, contexts[index], high[index], f"{number(middle[index])} ms", BLUE)

    _frame(right, "Memory kept of the text, MiB", contexts)
    right.set_yscale("log")
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter("")
    right.set_ylim(min(states + caches) / 2, 3 * max(states + caches))
    right.plot(contexts, caches, color=ORANGE, marker="o", linestyle="--")
    right.plot(contexts, states, color=BLUE, marker="o")
    _label(right, contexts[-1], caches[-1], number(caches[-1]), ORANGE)
    _label(right, contexts[-1], states[-1], number(states[-1]), BLUE)
    _label(right, contexts[0], states[0], "state", BLUE)
    _label(right, contexts[len(contexts) // 2], caches[len(caches) // 2], CACHE, ORANGE, "right")
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))


def _title(contexts: list[float], first: float, last: float) -> str:
    return (
        f"The token after {contexts[-1]:,.0f} others takes {last / first:.2f} times as long "
        f"as the one after {contexts[0]:,.0f}"
    )


def _frame(axes: "Axes", title: str, contexts: list[float]) -> None:
    """Log axis of tokens with readable ticks, and no box."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("tokens read before")
    axes.set_xscale("log")
    axes.set_xticks(contexts, [_short(n) for n in contexts])
    axes.tick_params(axis="x", which="minor", bottom=False)
    axes.margins(x=0.08)
    axes.grid(axis="y", color=GREY, alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def _label(
    axes: "Axes",
    x: float,
    y: float,
    text: str,
    color: str,
    ha: Literal["center", "right"] = "center",
) -> None:
    """Name a point of a line, above it; to its left where the line rises."""
    offset = (0, 8) if ha == "center" else (-10, 6)
    axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", ha=ha, color=color)


def _footer(record: Record) -> str:
    case, source = record.case, record.source
    return (
        f"{float(case['parameters']) / 1e6:.3g} M parameters, {case['dtype']}, 1 row; "
        f"{source.device}, {source.threads} thread{'s' * (source.threads != 1)}, "
        f"torch {source.torch}; {record.utc[:10]}"
    )


def _short(count: float) -> str:
    return f"{count / 1000:g}k" if count >= 1000 else f"{count:g}"
