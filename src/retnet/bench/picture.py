"""What the pictures of the benches share: colours, frames, and names beside the lines."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from retnet.bench.record import Record
from retnet.hub import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

GREY = "#6b7280"
# Okabe and Ito's colours, which the colour-blind tell apart; each has its marker besides.
LOOKS = {
    "retnet": ("#0072B2", "o", "retnet"),
    "retnet, on and on": ("#56B4E9", ".", "retnet, on and on"),
    "retnet without Numba": ("#56B4E9", ".", "retnet, no Numba"),
    "retnet with attention": ("#D55E00", "s", "attention, ours"),
    "attention with Numba": ("#7F3B08", "s", "attention, Numba"),
    "transformers": ("#E69F00", "^", "Llama, transformers"),
    "llama.cpp": ("#009E73", "D", "Llama, llama.cpp"),
    "torchscale": ("#CC79A7", "v", "RetNet, torchscale"),
    "flash-linear-attention": ("#CC79A7", "v", "flash-linear-attention"),
    "attention (flash": ("#D55E00", "s", "attention (flash)"),
    "attention (cudnn": ("#E69F00", "^", "attention (cudnn)"),
}
NAMED = "named at its end"
SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "int8"}


class Line(NamedTuple):
    """A line of a picture.

    Attributes:
        by: whose, a key of LOOKS at its beginning; its short name is written at the line's end.
        x: in order.
        y: as many.
        more: written after the name.
    """

    by: str
    x: Sequence[float]
    y: Sequence[float]
    more: str = ""


def look(by: str) -> tuple[str, str, str]:
    """Colour, marker and short name of whose code it is; versions do not matter."""
    return LOOKS[max((name for name in LOOKS if by.startswith(name)), key=len)]


def new_figure(width: float, height: float, title: str, records: Sequence[Record]) -> "Figure":
    """A figure with a title, and with the machine of the last record below."""
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=13, x=0.01, ha="left", fontweight="bold")
    source = records[-1].source
    figure.supxlabel(
        f"{source.device}, {source.threads} thread{'s' * (source.threads != 1)}, "
        f"torch {source.torch}; {records[-1].utc[:10]}",
        fontsize=8,
        color=GREY,
    )
    return figure


def draw_lines(axes: "Axes", title: str, lines: Iterable[Line], *, log_y: bool) -> None:
    """Draw lines over a log axis of tokens; no axes without lines.

    Their names are written at their ends when the figure is saved.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    lines = [line for line in lines if line.x]
    if not lines:
        axes.set_axis_off()
        return
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.set_xscale("log", base=2)
    ticks = sorted({x for line in lines for x in line.x})
    axes.set_xticks(thinned(ticks), [tokens_text(x) for x in thinned(ticks)])
    axes.tick_params(axis="x", which="minor", bottom=False)
    axes.tick_params(axis="x", labelsize=8.5)
    for line in lines:
        color, marker, name = look(line.by)
        (drawn,) = axes.plot(line.x, line.y, color=color, marker=marker, markersize=5)
        drawn.set(label=name + line.more, gid=NAMED)
    highest = max(max(line.y) for line in lines)
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.12 * highest)
        axes.yaxis.set_major_formatter("{x:,g}")
    axes.grid(axis="y", color=GREY, alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def thinned(ticks: Sequence[float]) -> list[float]:
    """Every tick that leaves at least half an octave to the one before."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick >= 1.9 * kept[-1]:
            kept.append(tick)
    return kept


def _name_lines(figure: "Figure") -> None:
    """Write the names of all lines of `draw_lines`, none above another.

    All at once: only when the whole figure has been laid out are places known.
    """
    named = [[line for line in axes.lines if line.get_gid() == NAMED] for axes in figure.axes]
    if any(named):
        figure.draw_without_rendering()
    for axes, lines in zip(figure.axes, named, strict=True):
        _name(axes, lines, step=13 * figure.dpi / 100)


def _name(axes: "Axes", lines: Sequence["Line2D"], step: float) -> None:
    """Write names right of the axes, at the height of the line's end, so far from each other."""
    low, high = axes.transAxes.transform([(0, 0), (0, 1)])[:, 1]
    ends = [np.asarray(line.get_xydata())[-1] for line in lines]
    wanted = sorted(
        (float(axes.transData.transform(end)[1]), number) for number, end in enumerate(ends)
    )
    places = spread_out([place for place, _ in wanted], step, float(low), float(high))
    for place, (_, number) in zip(places, wanted, strict=True):
        color = lines[number].get_color()
        axes.annotate(
            str(lines[number].get_label()),
            xy=tuple(ends[number]),
            xytext=(1.02, (place - low) / (high - low)),
            textcoords="axes fraction",
            color=color,
            fontsize=8.5,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.35, "lw": 0.6},
        )


def spread_out(places: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Move sorted places as little as needed, until each is `step` above the one before.

    Args:
        places: from the lowest up.
        step: the least distance.
        low: no place is below it.
        high: no place is above it, unless there are too many.
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + step if moved else low))
    top = max(high, low + step * (len(moved) - 1))
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], top)
        top = moved[i] - step
    return moved


def tokens_text(count: int | float) -> str:
    """A number of tokens, briefly: 512, 8k, 1M.

    Example:
        >>> [tokens_text(n) for n in (512, 2048, 8000, 131072, 1000000)]
        ['512', '2k', '8k', '128k', '1M']
    """
    if count >= 1e6:
        return f"{count / 1e6:.3g}M"
    if count < 1000:
        return f"{count:g}"
    return f"{count / 1024:g}k" if count % 1024 == 0 else f"{count / 1000:.3g}k"


def save(figure: "Figure", path: Path) -> None:
    """Name the lines, and write the PNG, whole or not at all, in 256 colours: small."""
    from PIL import Image  # matplotlib needs it too

    _name_lines(figure)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    picture = Image.open(drawn).convert("RGB").quantize(256)
    write_atomic(path, lambda temporary: picture.save(temporary, format="png", optimize=True))


def of_bench(records: Iterable[Record], bench: str, path: Path, command: str) -> list[Record]:
    """The records of a bench.

    Raises:
        ValueError: there are none.
    """
    found = [record for record in records if record.bench == bench]
    if not found:
        raise ValueError(
            f"no {bench} records to draw {path.name} from; run `retnet bench {command}`"
        )
    return found
