"""The picture of retention alone on a GPU: time against length, for each head size."""

from collections.abc import Iterable
from pathlib import Path

from retnet.bench.picture import Line, draw_lines, new_figure, of_bench, save
from retnet.bench.record import Record, Scalar
from retnet.bench.table import pivot

TITLES = {"fwd": "forward", "fwdbwd": "forward + backward"}


def plot_ops(records: Iterable[Record], path: Path) -> None:
    """Draw time per token and head against T, forward above, with backward below.

    Args:
        records: those of the bench `gpu/op` are drawn, eager calls only; where a length was
            measured with two numbers of rows, the larger.
        path: of the PNG.

    Raises:
        ValueError: none of the records is of that bench.
        ModuleNotFoundError: matplotlib is not installed.
    """
    records = of_bench(records, "gpu/op", path, "gpu-ops")
    eager = [record for record in records if record.case["launch"] == "eager"]
    sizes = sorted({(int(r.case["D_k"]), int(r.case["D_v"])) for r in eager})
    figure = new_figure(4.6 * len(sizes), 7.5, "Time per token and head, ns", records)
    panels = figure.subplots(2, len(sizes), squeeze=False)
    for row, (passes, title) in enumerate(TITLES.items()):
        for column, (D_k, D_v) in enumerate(sizes):
            mine = [r for r in eager if (r.case["D_k"], r.case["D_v"]) == (D_k, D_v)]
            lines = _lines(mine, passes)
            if lines:
                draw_lines(panels[row, column], f"{D_k}/{D_v}, {title}", lines, log_y=True)
    save(figure, path)


def _lines(records: list[Record], passes: str) -> list[Line]:
    """One for each code, nanoseconds over tokens."""
    found: dict[Scalar, dict[int, float]] = {}
    mine = [record for record in records if record.metric == f"{passes}_ms"]
    for (by, T, B, H), metrics in pivot(mine, "by", "T", "B", "H").items():
        token_heads = int(T) * int(B) * int(H)
        found.setdefault(by, {})[int(T)] = 1e6 * metrics[f"{passes}_ms"].median / token_heads
    return [Line(str(by), [*map(float, at)], [*at.values()]) for by, at in found.items()]
