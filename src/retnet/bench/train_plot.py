"""The picture of training: throughput and memory against the length of a row."""

from collections.abc import Iterable
from pathlib import Path

from retnet.bench.picture import Line, draw_lines, new_figure, of_bench, save
from retnet.bench.record import Record
from retnet.bench.table import millions, pivot


def plot_train(records: Iterable[Record], path: Path) -> None:
    """Draw tokens per second and peak memory of training steps.

    Args:
        records: those of the bench `train`; of the model with most of them in bfloat16, if any.
        path: of the PNG.

    Raises:
        ValueError: none of the records is of that bench.
        ModuleNotFoundError: matplotlib is not installed.
    """
    records = of_bench(records, "train/step", path, "train")
    precisions = {record.case["precision"] for record in records}
    precision = "bfloat16" if "bfloat16" in precisions else "float32"
    records = [record for record in records if record.case["precision"] == precision]
    model = records[0].case["model"]
    records = [record for record in records if record.case["model"] == model]
    title = (
        f"A training step, {millions(records[0].case['parameters'])}, {precision}: "
        "throughput and memory against length"
    )
    figure = new_figure(11.0, 4.4, title, records)
    left, right = figure.subplots(1, 2)
    found = pivot(records, "by", "T")
    names = dict.fromkeys(str(by) for by, _ in found)

    def lines(metric: str, unit: float) -> list[Line]:
        drawn = []
        for name in names:
            mine = {T: m for (by, T), m in found.items() if by == name and metric in m}
            values = [m[metric].median / unit for m in mine.values()]
            drawn.append(Line(name, [float(T) for T in mine], values))
        return drawn

    draw_lines(left, "Tokens per second", lines("tokens_per_s", 1.0), log_y=False)
    memory = lines("peak_over_start_mib", 1024.0)
    draw_lines(right, "Peak memory, GiB, without libraries", memory, log_y=True)
    for axes in (left, right):
        axes.set_xlabel("tokens of the row")
    save(figure, path)
