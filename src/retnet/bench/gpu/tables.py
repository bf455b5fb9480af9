"""Tables of what was measured on a GPU, pure functions of records as those of other benches."""

from collections.abc import Callable, Iterable, Mapping

from retnet.bench.record import Record
from retnet.bench.table import (
    Row,
    Table,
    caption,
    make_table,
    millions,
    number,
    pivot,
    ratio_text,
    share_text,
    spread_text,
)
from retnet.bench.timing import Spread

OUT_OF_MEMORY = "out of memory"


def machine_table(records: Iterable[Record]) -> Table:
    """The most that the device does."""
    records = [record for record in records if record.bench == "gpu/machine"]
    names = {
        "matmul_tflops": "bfloat16 matrix product, TFLOP/s",
        "copy_gb_per_s": "copy, GB/s read and written",
    }
    found = pivot(records).get((), {})
    rows = [(name, spread_text(found[metric])) for metric, name in names.items() if metric in found]
    return Table("Ceilings of the GPU", ("what", "median"), rows, caption(records))


def ops_table(records: Iterable[Record]) -> Table:
    """Retention alone: time, shares of the ceilings, rivals beside ours."""
    records = [record for record in records if record.bench == "gpu/op"]
    fields = ("D_k", "D_v", "H", "dtype", "T", "B", "launch", "by")
    labels, rows = [], []
    for passes in ("fwd", "fwdbwd"):
        mine = [record for record in records if record.metric.startswith(f"{passes}_")]
        for (D_k, D_v, H, dtype, T, B, launch, by), found in pivot(mine, *fields).items():
            labels.append(
                (
                    f"{D_k}/{D_v}",
                    f"{H} heads",
                    str(dtype),
                    f"T {T:,}",
                    f"B {B}",
                    passes.replace("fwdb", "fwd+b"),
                )
            )
            rows.append(
                (
                    f"{by}, {launch}",
                    spread_text(found[f"{passes}_ms"]),
                    share_text(found[f"{passes}_share_of_copy"]),
                    share_text(found[f"{passes}_share_of_matmul"]),
                    ratio_text(found.get(f"{passes}_time_over_retnet")),
                )
            )
    columns = ("D_k/D_v", "code", "ms", "of copy", "of matmul peak", "its time / ours")
    return make_table("Retention alone on a GPU", columns, labels, rows, records)


def train_table(records: Iterable[Record]) -> Table:
    """Training steps of a whole model: tokens per second and memory."""
    records = [record for record in records if record.bench == "gpu/train_step"]
    fields = ("model", "T", "checkpointing", "B", "by")
    labels, rows = [], []
    for (model, T, checkpointing, B, by), found in pivot(records, *fields).items():
        way = f"{'with' if checkpointing else 'without'} gradient checkpointing"
        labels.append((str(model), f"T {T:,}", way, f"B {B}"))
        if "out_of_memory" in found:
            rows.append((str(by), OUT_OF_MEMORY, "", ""))
            continue
        rows.append(
            (
                str(by),
                spread_text(found["tokens_per_s"]),
                share_text(found["share_of_matmul"]),
                number(found["peak_gib"].median),
            )
        )
    columns = ("case", "code", "tokens/s", "of matmul peak", "memory, GiB")
    return make_table("Training step on a GPU", columns, labels, rows, records)


def decode_table(records: Iterable[Record]) -> Table:
    """Decoding: latency, throughput and memory after contexts of several lengths."""
    records = [record for record in records if record.bench == "gpu/decode"]
    fields = ("model", "dtype", "B", "context", "launch", "by", "parameters")
    labels, rows = [], []
    for (model, dtype, B, context, launch, by, size), found in pivot(records, *fields).items():
        labels.append((str(model), str(dtype), f"B {B}", f"context {context:,}"))
        code = f"{by}, {millions(size)}, {launch}"
        rows.append((code, *_decode_cells(found)))
    columns = ("case", "code", "ms per token", "tokens/s", "of copy", "memory, GiB")
    return make_table("Decoding on a GPU", columns, labels, rows, records)


def _decode_cells(found: Mapping[str, Spread]) -> Row:
    if "out_of_memory" in found:
        return OUT_OF_MEMORY, "", "", ""
    return (
        spread_text(found["step_ms"]),
        number(found["tokens_per_s"].median),
        share_text(found["share_of_copy"]),
        number(found["peak_gib"].median),
    )


GPU_TABLES: dict[str, Callable[[Iterable[Record]], Table]] = {
    "gpu-machine": machine_table,
    "gpu-ops": ops_table,
    "gpu-train": train_table,
    "gpu-decode": decode_table,
}
