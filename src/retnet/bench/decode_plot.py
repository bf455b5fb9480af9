"""The picture of decoding: throughput, latency and memory against context, and against rows."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from retnet.bench.picture import SHORT, Line, draw_lines, new_figure, of_bench, save
from retnet.bench.record import Record
from retnet.bench.table import Key, millions, pivot
from retnet.bench.timing import Spread

PANELS = (
    ("Tokens per second", "tokens_per_s", 1.0),
    ("Latency, ms", "token_ms", 1.0),
    ("Weights and state, MiB", "memory", 2.0**20),
)

Found = Mapping[Key, Mapping[str, Spread]]


def plot_decode(records: Iterable[Record], path: Path) -> None:
    """Draw throughput, latency and memory, as figure 6 of arXiv:2307.08621 does.

    Of each program the faster of its dtypes is drawn.

    Args:
        records: those of the bench `decode`; of the first model.
        path: of the PNG.

    Raises:
        ValueError: none of the records is of that bench.
        ModuleNotFoundError: matplotlib is not installed.
    """
    records = of_bench(records, "decode/step", path, "decode")
    first = records[0].case["model"]
    records = [record for record in records if record.case["model"] == first]
    found = pivot(records, "by", "dtype", "context", "B")
    rows = sorted({int(B) for *_, B in found})
    shown = list(dict.fromkeys([rows[0], 8 if 8 in rows else rows[-1]]))
    title = f"The next token, {millions(records[0].case['parameters'])}"
    figure = new_figure(15.0, 4.0 * len(shown), title, records)
    for B, axes in zip(shown, figure.subplots(len(shown), 3, squeeze=False), strict=True):
        said = f"{B} row{'s' * (B != 1)}"
        for each, (name, metric, unit) in zip(axes, PANELS, strict=True):
            draw_lines(each, f"{name}, {said}", _lines(found, B, metric, unit), log_y=True)
            each.set_xlabel("tokens read before")
    save(figure, path)


def _lines(found: Found, B: int, metric: str, unit: float) -> list[Line]:
    """A line for each program, in the dtype in which it is fastest after the longest text."""
    at = {key[:3]: metrics for key, metrics in found.items() if key[3] == B}
    lines = []
    for by in dict.fromkeys(str(key[0]) for key in at):
        dtype = _fastest(at, by)
        mine = {context: m for (b, d, context), m in at.items() if (b, d) == (by, dtype)}
        values = [_value(m, metric) / unit for m in mine.values()]
        contexts = [float(context) for context in mine]
        lines.append(Line(by, contexts, values, f", {SHORT[dtype]}"))
    return lines


def _fastest(at: Found, by: str) -> str:
    longest = max(float(context) for b, _, context in at if b == by)
    times = {
        str(dtype): metrics["token_ms"].median
        for (b, dtype, context), metrics in at.items()
        if (b, context) == (by, longest)
    }
    return min(times, key=lambda dtype: times[dtype])


def _value(metrics: Mapping[str, Spread], metric: str) -> float:
    if metric == "memory":
        return metrics["weight_bytes"].median + metrics["kept_bytes"].median
    return metrics[metric].median
