"""A soak as a picture: memory of the server, and what it answered meanwhile."""

from collections.abc import Iterable
from pathlib import Path

from retnet.bench.picture import GREY, new_figure, of_bench, save
from retnet.bench.record import Record

COLOURS = {1: "#0072B2", 2: "#D55E00"}


def plot_soak(records: Iterable[Record], path: Path) -> None:
    """Draw memory and requests per second over time.

    Raises:
        ValueError: there are no records of a soak.
    """
    found = of_bench(records, "serve/soak_memory", path, "soak")
    case = found[-1].case
    figure = new_figure(8.5, 5.2, "A server in use, killed half way", found)
    memory, speed = figure.subplots(2, 1, sharex=True)
    for process, colour in COLOURS.items():
        for axes, metric in ((memory, "rss_mib"), (speed, "completed_per_s")):
            mine = [r for r in found if r.metric == metric and r.case["process"] == process]
            x = [float(r.case["at_s"]) / 60 for r in mine]
            axes.plot(x, [r.spread.median for r in mine], color=colour, linewidth=1.8)
    parts = [r for r in found if r.metric == "rss_mib"]
    first = [float(r.case["at_s"]) / 60 for r in parts if r.case["process"] == 1]
    top = max(r.spread.median for r in parts)
    memory.set_ylim(0, 1.25 * top)
    speed.set_ylim(bottom=0)
    memory.set_title("memory of the process, MiB", loc="left", fontsize=10.5)
    about = f"{case['clients']} clients, {case['B']} places, {case['queue']} may wait"
    speed.set_title(f"requests completed per second; {about}", loc="left", fontsize=10.5)
    speed.set_xlabel("minutes")
    for axes in (memory, speed):
        axes.axvline(max(first), color=GREY, linestyle="--", linewidth=1)
        axes.grid(axis="y", color=GREY, alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    memory.annotate(
        "SIGKILL", (max(first), 1.2 * top), xytext=(4, -4), textcoords="offset points", va="top"
    )
    save(figure, path)
