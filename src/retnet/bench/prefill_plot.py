"""The picture of reading prompts: speed, and what is kept of the text, against its length."""

from collections.abc import Iterable
from pathlib import Path

from retnet.bench.ours import OURS
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
    """Everyone by their prompts; ours also by the text that goes on and on."""
    found = pivot(prompts, "by", "dtype", "T")
    reading = {(f"{OURS}, on and on", d, T): m for (d, T), m in pivot(on, "dtype", "T").items()}
    values: dict[tuple[str, str], dict[int, float]] = {}
    for (by, dtype, T), metrics in (found | reading).items():
        values.setdefault((str(by), str(dtype)), {})[int(T)] = metrics[metric].median / unit
    return [
        Line(by, [*map(float, at)], [*at.values()], f", {SHORT[dtype]}")
        for (by, dtype), at in values.items()
    ]
