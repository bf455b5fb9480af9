"""The picture of training on one long document: what the process holds, beside one long step."""

from collections.abc import Iterable
from pathlib import Path

from retnet.bench.picture import GREY
from retnet.bench.record import Record
from retnet.bench.table import caption, number, pivot
from retnet.hub import write_atomic

BLUE, ORANGE = "#0072B2", "#D55E00"


def plot_document(records: Iterable[Record], path: Path) -> None:
    """Draw the peak memory of the process over the tokens trained on.

    Args:
        records: those of the bench `document` are drawn.
        path: of the PNG.

    Raises:
        ValueError: none of the records is of that bench.
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, no global state
    from matplotlib.ticker import EngFormatter

    records = [record for record in records if record.bench == "document"]
    if not records:
        raise ValueError(
            f"no document records to draw {path.name} from; run `retnet bench document`"
        )
    found = pivot(records, "carried", "seq_len", "tokens")
    carried = [(key, metrics) for key, metrics in found.items() if key[0]]
    whole = [(key, metrics) for key, metrics in found.items() if not key[0]]

    figure = Figure(figsize=(9, 4.8), dpi=150, layout="constrained")
    figure.supxlabel(caption(records).replace("; commit", "\ncommit"), fontsize=8, color=GREY)
    axes = figure.subplots()
    for runs, color, marker, label in (
        (whole, ORANGE, "o", "one step, all activations kept"),
        (carried, BLUE, "", f"steps of {carried[0][0][1]:,} tokens, state carried"),
    ):
        tokens = [float(key[2]) for key, _ in runs]
        memory = [metrics["process_mib"].median for _, metrics in runs]
        axes.plot(tokens, memory, color=color, marker=marker, linewidth=2, label=label)
        axes.annotate(
            f"{number(memory[-1])} MiB",
            (tokens[-1], memory[-1]),
            (0, 6),
            color=color,
            textcoords="offset points",
            ha="center",
        )
    axes.set_title(
        f"A document of {carried[-1][0][2]:,} tokens: the most memory the process has held",
        loc="left",
        fontsize=11,
    )
    axes.set_xlabel("tokens of the document trained on")
    axes.set_ylabel("MiB")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
