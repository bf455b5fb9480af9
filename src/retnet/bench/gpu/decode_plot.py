"""The picture of decoding on a GPU, as the paper's figure 6: memory, throughput and latency."""

from collections.abc import Iterable
from pathlib import Path

from retnet.bench.picture import Line, draw_lines, new_figure, of_bench, save
from retnet.bench.record import Record, Scalar
from retnet.bench.table import pivot
from retnet.bench.timing import Spread

Found = dict[tuple[int, int, Scalar], dict[str, Spread]]


def plot_decoding(records: Iterable[Record], path: Path) -> None:
    """Draw memory and throughput against context, and latency against the batch.

    What ran out of memory has no point; where a step was recorded as a CUDA graph, that is drawn.

    Args:
        records: those of the bench `gpu/decode` are drawn.
        path: of the PNG.

    Raises:
        ValueError: none of the records is of that bench.
        ModuleNotFoundError: matplotlib is not installed.
    """
    records = of_bench(records, "gpu/decode", path, "gpu-decode")
    found = _best(records)
    batches = sorted({B for B, _, _ in found})
    contexts = sorted({context for _, context, _ in found})
    middle, longest = batches[len(batches) // 2], contexts[-1]
    panels = {
        f"Memory, GiB, B {middle}": _over_contexts(found, middle, "peak_gib"),
        f"Tokens/s, B {middle}": _over_contexts(found, middle, "tokens_per_s"),
        f"Tokens/s, B {batches[-1]}": _over_contexts(found, batches[-1], "tokens_per_s"),
        f"ms per token after {longest:,}, against B": _over_batches(found, longest),
    }
    case = records[-1].case
    figure = new_figure(20.0, 4.6, f"Decoding with {case['model']}, {case['dtype']}", records)
    for axes, (title, lines) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        if lines:
            draw_lines(axes, title, lines, log_y=True)
    save(figure, path)


def _best(records: list[Record]) -> Found:
    """Of each batch, context and model: graphs before eager steps, which sort before them."""
    fields = ("B", "context", "by", "launch")
    return {
        (int(B), int(context), by): metrics
        for (B, context, by, _), metrics in pivot(records, *fields).items()
        if "out_of_memory" not in metrics
    }


def _over_contexts(found: Found, batch: int, metric: str) -> list[Line]:
    lines: dict[Scalar, dict[int, float]] = {}
    for (B, context, by), metrics in found.items():
        if batch == B:
            lines.setdefault(by, {})[context] = metrics[metric].median
    return _drawn(lines)


def _over_batches(found: Found, at: int) -> list[Line]:
    lines: dict[Scalar, dict[int, float]] = {}
    for (B, context, by), metrics in found.items():
        if context == at:
            lines.setdefault(by, {})[B] = metrics["step_ms"].median
    return _drawn(lines)


def _drawn(lines: dict[Scalar, dict[int, float]]) -> list[Line]:
    return [Line(str(by), [*map(float, at)], [*at.values()]) for by, at in lines.items()]
