"""The picture of reading prompts: speed, and what is kept of the text, against its length."""

from collections.abc import Iterable
from pathlib import Path

from retnet.bench.picture import SHORT, Line, draw_lines, new_figure, save
from retnet.bench.record import Record
from retnet.bench.table import millions, pivot


def plot_prefill(records: Iterable[Record], path: Path) -> None:
    """Draw tokens per second and bytes kept of prompts.

    Args:
        records: those of the bench `prefill`; of the first model.
        path: of the PNG.

    Raises:
        ValueError: none of the records is of that bench.
        ModuleNotFoundError: matplotlib is not installed.
    """
    records = [record for record in records if record.bench.startswith("prefill/")]
    if not records:
        raise ValueError(f"no prefill records to draw {path.name} from; run `retnet bench prefill`")
    first = records[0].case["model"]
    records = [record for record in records if record.case["model"] == first]
    on = [record for record in records if record.bench == "prefill/on"]
    prompts = [record for record in records if record.bench == "prefill/prompt"]
    title = f"Reading a prompt, {millions(records[0].case['parameters'])}"
    figure = new_figure(11.0, 4.4, title, records)
    left, right = figure.subplots(1, 2)
    draw_lines(left, "Tokens per second", _lines(prompts, on, "tokens_per_s", 1.0), log_y=True)
    kept = _lines(prompts, on, "kept_bytes", 2.0**20)
    draw_lines(right, "Kept of the text, MiB", kept, log_y=True)
    for axes in (left, right):
        axes.set_xlabel("tokens of the prompt")
    save(figure, path)


def _lines(prompts: list[Record], on: list[Record], metric: str, unit: float) -> list[Line]:
    """Peers by their prompts, ours by the text that goes on and on."""
    found = pivot(prompts, "by", "dtype", "T")
    theirs = dict.fromkeys((str(by), str(dtype)) for by, dtype, _ in found if by != "retnet")
    lines = [
        Line(
            by,
            [float(T) for b, d, T in found if (b, d) == (by, dtype)],
            [m[metric].median / unit for (b, d, _), m in found.items() if (b, d) == (by, dtype)],
            f", {SHORT[dtype]}",
        )
        for by, dtype in theirs
    ]
    ours = pivot(on, "dtype", "T")
    for dtype in dict.fromkeys(str(dtype) for dtype, _ in ours):
        mine = {T: m for (d, T), m in ours.items() if d == dtype}
        values = [m[metric].median / unit for m in mine.values()]
        lines.append(Line("retnet", [float(T) for T in mine], values, f", {SHORT[dtype]}"))
    return lines
