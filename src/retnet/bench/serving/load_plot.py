"""Load as a picture: what the server gives, and what a client waits for."""

from collections.abc import Iterable
from pathlib import Path

from retnet.bench.picture import GREY, new_figure, of_bench, save
from retnet.bench.record import Record

WAITS = {
    "first_token_ms": ("to the first token", "#0072B2"),
    "between_tokens_ms": ("between two tokens", "#D55E00"),
}
LINES = {"p50": "-", "p95": "--", "p99": ":"}


def plot_load(records: Iterable[Record], path: Path) -> None:
    """Draw tokens per second and waiting times against the number of clients.

    Raises:
        ValueError: there are no records of a load.
    """
    found = of_bench(records, "serve/load", path, "load")
    figure = new_figure(9.5, 4.2, "A server under load", found)
    speed, waits = figure.subplots(1, 2)
    clients = sorted({int(record.case["clients"]) for record in found})
    places = range(len(clients))

    def values(metric: str) -> list[float]:
        by = {int(r.case["clients"]): r.spread.median for r in found if r.metric == metric}
        return [by[number] for number in clients]

    speed.bar([x - 0.2 for x in places], values("engine_tokens_per_s"), 0.4, color="#56B4E9")
    speed.bar([x + 0.2 for x in places], values("tokens_per_s"), 0.4, color="#0072B2")
    speed.legend(["the engine alone", "over HTTP"], frameon=False, fontsize=8.5)
    speed.set_title("tokens per second", loc="left", fontsize=10.5)
    for metric, (said, colour) in WAITS.items():
        for percent, style in LINES.items():
            waits.plot(
                places,
                values(f"{metric}_{percent}"),
                linestyle=style,
                color=colour,
                marker="o",
                markersize=4,
                label=f"{said}, {percent}",
            )
    waits.set_yscale("log")
    waits.yaxis.set_major_formatter("{x:,g}")
    waits.set_title("waiting, ms", loc="left", fontsize=10.5)
    waits.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (speed, waits):
        axes.set_xticks(list(places), [str(number) for number in clients])
        axes.set_xlabel("clients at once")
        axes.grid(axis="y", color=GREY, alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
