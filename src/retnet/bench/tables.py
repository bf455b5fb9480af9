"""The table of each bench: a pure function of records, as Markdown for the docs and as text.

CI can so compare the docs with the committed lines.
"""

from collections.abc import Callable, Iterable
from typing import get_args

from retnet.bench.gpu.tables import GPU_TABLES
from retnet.bench.record import Record, Scalar
from retnet.bench.table import (
    Key,
    Table,
    caption,
    make_table,
    mebibytes,
    millions,
    number,
    pivot,
    ratio_text,
    share_text,
    short_ratio,
    spread_text,
)
from retnet.bench.targets import targets_table
from retnet.bench.timing import Spread
from retnet.ops.packed_linear import Weights


def ops_table(records: Iterable[Record]) -> Table:
    """Retention alone: time, operations per second, torchscale beside ours."""
    records = [record for record in records if record.bench == "op/retention"]
    fields = ("B", "H", "D_k", "D_v", "T", "dtype", "form", "by")
    labels, rows = [], []
    for passes in ("fwd", "fwdbwd"):
        mine = [record for record in records if record.metric.startswith(f"{passes}_")]
        for (*sizes, T, dtype, form, by), metrics in pivot(mine, *fields).items():
            shape = (f"{name} {size}" for name, size in zip(fields, sizes, strict=False))
            labels.append((*shape, f"T {T:,}", str(dtype), passes.replace("fwdb", "fwd+b")))
            rows.append(
                (
                    f"{by}, {form}",
                    spread_text(metrics[f"{passes}_ms"]),
                    number(metrics[f"{passes}_gflops"].median),
                    f"{metrics[f'{passes}_share_of_matmul'].median:.0%}",
                    ratio_text(metrics.get(f"{passes}_time_over_retnet")),
                )
            )
    columns = ("case", "code, form", "ms", "GFLOP/s", "of matmul peak", "its time / ours")
    return make_table("Retention alone", columns, labels, rows, records)


def scan_table(records: Iterable[Record]) -> Table:
    """The diagonal recurrence alone: time of each form, beside the chunkwise one's."""
    records = [record for record in records if record.bench == "op/scan"]
    fields = ("T", "N", "B", "dtype", "factors", "form")
    labels, rows = [], []
    for (T, N, B, dtype, factors, form), metrics in pivot(records, *fields).items():
        a = f"a of each {factors}"
        labels.append((f"T {T:,}", f"N {N:,}", f"B {B}", str(dtype), a))
        cells = [str(form)]
        for passes in ("fwd", "fwdbwd"):
            cells.append(spread_text(metrics[f"{passes}_ms"]))
            cells.append(ratio_text(metrics.get(f"{passes}_time_over_chunkwise")))
        rows.append(tuple(cells))
    times = ("forward, ms", "/ chunkwise", "and backward, ms", "/ chunkwise")
    columns = ("case", "form", *times)
    return make_table("Diagonal recurrence alone", columns, labels, rows, records)


def rwkv_table(records: Iterable[Record]) -> Table:
    """RWKV-4 in each activity: tokens per second, and others' time as a multiple of ours."""
    records = [record for record in records if record.bench.startswith("rwkv/")]
    labels, rows = [], []
    for activity in ("train", "prefill", "decode"):
        mine = [record for record in records if record.bench == f"rwkv/{activity}"]
        fields = ("model", "B", "T", "dtype", "by")
        for (model, B, T, dtype, by), metrics in pivot(mine, *fields).items():
            labels.append((activity, str(model), f"T {T:,}", f"B {B}"))
            ratios = [metrics.get("time_over_retnet")]
            kinds = [metrics.get(f"time_over_retnet_{kind}") for kind in get_args(Weights)]
            texts = [ratio_text(ratio) for ratio in (kinds if any(kinds) else ratios)]
            speed = number(metrics["tokens_per_s"].median)
            rows.append((f"{by}, {dtype}", speed, ", ".join(texts)))
    columns = ("case", "code, weights", "tokens/s", "its time / ours")
    return make_table("RWKV-4", columns, labels, rows, records)


def train_table(records: Iterable[Record]) -> Table:
    """Whole training steps: tokens per second and peak memory, others beside ours."""
    records = [record for record in records if record.bench == "train/step"]
    fields = ("model", "B", "T", "precision", "by")
    labels, rows = [], []
    for (model, B, T, precision, by), metrics in pivot(records, *fields).items():
        labels.append((str(model), f"B {B}", f"T {T:,}", str(precision)))
        rows.append(
            (
                str(by),
                number(metrics["tokens_per_s"].median),
                share_text(metrics.get("share_of_matmul")),
                number(peak.median) if (peak := metrics.get("peak_over_start_mib")) else "",
                ratio_text(metrics.get("step_time_over_retnet")),
            )
        )
    columns = ("case", "code", "tokens/s", "of matmul peak", "memory, MiB", "its time / ours")
    return make_table("Training step", columns, labels, rows, records)


def forms_table(records: Iterable[Record]) -> Table:
    """Disagreement between forms: largest difference of logits from the float64 recurrence."""
    records = [record for record in records if record.bench == "forms"]
    cells: dict[Key, dict[Scalar, dict[str, Spread]]] = {}
    for (*key, form), metrics in pivot(records, "model", "gain", "dtype", "form").items():
        cells.setdefault(tuple(key), {})[form] = metrics
    forms = ("recurrent", "parallel", "chunkwise")
    labels = [(str(model), f"weights x {gain}", str(dtype)) for model, gain, dtype in cells]
    rows = []
    for found in cells.values():
        worst = {name: max(m[name].median for m in found.values()) for name in found[forms[0]]}
        errors = (found[form]["max_abs"].median for form in forms)
        rows.append(tuple(f"{x:.1e}" for x in (*errors, worst["apart"], worst["relative"])))
    columns = ("case", *forms, "between two forms", "worst / deviation of logits")
    return make_table("Disagreement between forms", columns, labels, rows, records)


def prefill_table(records: Iterable[Record]) -> Table:
    """Reading a prompt: tokens per second and memory, others beside ours."""
    records = [record for record in records if record.bench == "prefill/prompt"]
    fields = ("model", "T", "by", "dtype")
    labels, rows = [], []
    for (model, T, by, dtype), metrics in pivot(records, *fields).items():
        labels.append((str(model), f"T {T:,}"))
        rows.append(
            (
                f"{by}, {dtype}",
                spread_text(metrics["tokens_per_s"]),
                mebibytes(metrics["kept_bytes"].median),
                number(peak.median) if (peak := metrics.get("peak_over_start_mib")) else "",
                ratio_text(metrics.get("time_over_retnet")),
            )
        )
    memory = ("kept of the text, MiB", "memory, MiB")
    columns = ("case", "code", "tokens/s", *memory, "its time / ours")
    return make_table("Reading a prompt", columns, labels, rows, records)


def reading_table(records: Iterable[Record]) -> Table:
    """Reading one ever longer text: speed since the line before, and memory."""
    records = [record for record in records if record.bench == "prefill/on"]
    fields = ("model", "parameters", "dtype", "T")
    labels, rows = [], []
    for (model, size, dtype, T), metrics in pivot(records, *fields).items():
        labels.append((str(model), millions(size), str(dtype), f"{T:,}"))
        rows.append(
            (
                number(metrics["tokens_per_s"].median),
                mebibytes(metrics["kept_bytes"].median),
                number(metrics["process_mib"].median),
            )
        )
    columns = ("tokens read", "tokens/s since the line above", "state, MiB", "process, MiB")
    return make_table("Reading on and on", columns, labels, rows, records)


def decode_table(records: Iterable[Record]) -> Table:
    """Decoding: time of a token, memory, and the share of the time that reading them takes."""
    records = [record for record in records if record.bench == "decode/step"]
    fields = ("model", "context", "B", "by", "dtype")
    labels, rows = [], []
    for (model, context, B, by, dtype), metrics in pivot(records, *fields).items():
        labels.append((str(model), f"after {context:,}", f"B {B}"))
        rows.append(
            (
                f"{by}, {dtype}",
                number(metrics["tokens_per_s"].median),
                number(metrics["token_ms"].median),
                mebibytes(metrics["weight_bytes"].median),
                mebibytes(metrics["kept_bytes"].median),
                share_text(metrics["share_of_reading"]),
                short_ratio(metrics.get("time_over_retnet")),
            )
        )
    memory = ("weights, MiB", "state or cache, MiB")
    speed = ("tokens/s", "ms", *memory, "of reading speed", "its time / ours")
    return make_table("Decoding", ("case", "code", *speed), labels, rows, records)


def document_table(records: Iterable[Record]) -> Table:
    """Training on one document: memory of the process, read on or in one step."""
    records = [record for record in records if record.bench == "document"]
    fields = ("parameters", "precision", "seq_len", "carried", "tokens")
    labels, rows = [], []
    found = list(pivot(records, *fields).items())
    marks = [key for key, _ in found if key[3]]
    shown = {marks[round(i / 4 * (len(marks) - 1))] for i in range(5)} if marks else set()
    for key, metrics in found:
        size, precision, T, carried, tokens = key
        if carried and key not in shown:
            continue
        way = f"steps of {T:,} tokens" if carried else "one step"
        labels.append((millions(size), str(precision), way, f"{tokens:,}"))
        rows.append((number(metrics["process_mib"].median), number(metrics["tokens_per_s"].median)))
    columns = ("tokens trained on", "process, MiB", "tokens/s")
    return make_table("Training on one document", columns, labels, rows, records)


def serve_table(records: Iterable[Record]) -> Table:
    """The engine of a server: each load's figures, one in a row."""
    records = [record for record in records if record.bench == "serve/engine"]
    labels, rows = [], []
    for key, metrics in pivot(records, "parameters", "B", "load").items():
        size, B, load = key
        for name, spread in sorted(metrics.items()):
            labels.append((millions(size), f"{B} rows", f"{load}: {name}"))
            rows.append((spread_text(spread),))
    return make_table("Serving", ("load", "figure"), labels, rows, records)


def beside_table(records: Iterable[Record]) -> Table:
    """The engine beside other people's: tokens per second, their time as a multiple of ours."""
    records = [record for record in records if record.bench == "serve/beside"]
    labels, rows = [], []
    fields = ("model", "context", "B", "by", "dtype")
    for (model, context, B, by, dtype), metrics in pivot(records, *fields).items():
        labels.append((str(model), f"{B} prompts of {context:,}"))
        rows.append(
            (
                f"{by}, {dtype}",
                number(metrics["tokens_per_s"].median),
                short_ratio(metrics.get("retnet_over_it")),
                number(metrics["tokens_per_s_with_reading"].median),
                short_ratio(metrics.get("retnet_over_it_with_reading")),
            )
        )
    columns = ("case", "code", "tokens/s", "ours / it", "tokens/s with reading", "ours / it")
    return make_table("Beside others", columns, labels, rows, records)


def load_table(records: Iterable[Record]) -> Table:
    """Clients at a server: what it gives them, and how long they wait."""
    records = [record for record in records if record.bench == "serve/load"]
    labels, rows = [], []
    for (model, B, clients), metrics in pivot(records, "model", "B", "clients").items():
        labels.append((str(model), f"{B} places", f"{clients} at once"))
        waits = ("first_token_ms", "between_tokens_ms", "whole_answer_ms")
        rows.append(
            (
                number(metrics["requests_per_s"].median),
                number(metrics["tokens_per_s"].median),
                share_text(metrics["share_of_engine"]),
                *(
                    " / ".join(number(metrics[f"{wait}_p{p}"].median) for p in (50, 95, 99))
                    for wait in waits
                ),
            )
        )
    waits = ("first token, ms", "between tokens, ms", "whole answer, ms")
    columns = ("clients", "requests/s", "tokens/s", "of the engine alone", *waits)
    return make_table("Load", columns, labels, rows, records)


SOAK_ROWS = {
    "sent": "requests sent",
    "completed": "completed",
    "refused": "refused: the queue is full, or the session is busy",
    "aborted": "the client left",
    "cut": "the connection broke with the server's end",
    "lost": "lost",
    "completed_per_s": "completed per second",
    "conversations": "conversations at the end",
    "turns_before_the_kill": "their turns acknowledged before SIGKILL, all there after it",
    "turns": "their turns acknowledged in all, all there",
    "replayed": "conversations had again uninterrupted",
    "replayed_to_a_tie": "of these, up to two tokens equally likely",
    "leaked_rows": "places held once all was quiet",
    "restart_s": "seconds from SIGKILL to a server that listens",
    "rss_mib_1": "memory before SIGKILL, MiB",
    "rss_mib_2": "memory at the end, MiB",
    "rss_slope_kb_per_minute_1": "its slope before SIGKILL, kB/minute",
    "rss_slope_kb_per_minute_2": "its slope after it, kB/minute",
}
"""What a soak counts, and what it is called."""


def soak_table(records: Iterable[Record]) -> Table:
    """A server in use for minutes: how requests ended, what was kept, what memory did."""
    records = [record for record in records if record.bench == "serve/soak"]
    labels, rows = [], []
    fields = ("model", "minutes", "clients", "B", "queue")
    for (model, minutes, clients, B, queue), metrics in pivot(records, *fields).items():
        about = f"{clients} clients, {B} places, {queue} may wait"
        for metric, said in SOAK_ROWS.items():
            labels.append((str(model), f"{float(minutes):g} minutes", about, said))
            rows.append((number(metrics[metric].median),))
    return make_table("A server in use", ("what", "count"), labels, rows, records)


def kills_table(records: Iterable[Record]) -> Table:
    """A run killed again and again: when the kills hit, and how long it took."""
    records = [record for record in records if record.bench == "kills"]
    labels, rows = [], []
    for (steps, every, kills), metrics in pivot(records, "steps", "save_every", "kills").items():
        labels.append((f"{steps:,} steps, saved every {every}", f"{kills} kills"))
        hit = (metrics.get(f"kills_{moment}") for moment in ("starting", "training", "saving"))
        rows.append(
            (
                *(f"{spread.median:.0f}" if spread else "0" for spread in hit),
                number(metrics["different_bits"].median),
                *(f"{metrics[name].median / 60:.1f}" for name in ("whole_s", "killed_s")),
            )
        )
    hits = ("while starting", "while training", "while saving")
    times = ("minutes, never interrupted", "minutes, killed")
    columns = ("run", *hits, "different bits", *times)
    return make_table("A run killed again and again", columns, labels, rows, records)


def sessions_table(records: Iterable[Record]) -> Table:
    """Sessions on disk: how long each operation on one takes."""
    records = [record for record in records if record.bench == "sessions"]
    names = {"resume": "resumed", "commit": "turn committed", "fork": "forked", "list": "listed"}
    labels, rows = [], []
    for (num, size), metrics in pivot(records, "sessions", "state_bytes").items():
        labels.append((f"{num:,} sessions on disk", f"states of {float(size) / 1024:.0f} KiB"))
        rows.append(tuple(spread_text(metrics[f"{name}_ms"]) for name in (*names, "open")))
    columns = ("sessions", *(f"{what}, ms" for what in names.values()), "folder opened, ms")
    return make_table("Sessions", columns, labels, rows, records)


def machine_table(records: Iterable[Record]) -> Table:
    """The most that the machine does: what shares are shares of."""
    records = [record for record in records if record.bench == "machine"]
    names = {
        "float32/matmul_gflops": "float32 matrix product, GFLOP/s",
        "bfloat16/matmul_gflops": "bfloat16 matrix product, GFLOP/s",
        "read_gb_per_s": "read, GB/s",
        "copy_gb_per_s": "copy, GB/s read and written",
    }
    found = pivot(records).get((), {})
    rows = [(name, spread_text(found[metric])) for metric, name in names.items() if metric in found]
    return Table("Ceilings of the machine", ("what", "median"), rows, caption(records))


TABLES: dict[str, Callable[[Iterable[Record]], Table]] = {
    "ops": ops_table,
    "scan": scan_table,
    "rwkv": rwkv_table,
    "train": train_table,
    "forms": forms_table,
    "prefill": prefill_table,
    "reading": reading_table,
    "decode": decode_table,
    "document": document_table,
    "kills": kills_table,
    "serve": serve_table,
    "beside": beside_table,
    "load": load_table,
    "soak": soak_table,
    "sessions": sessions_table,
    "machine": machine_table,
    "targets": targets_table,
    **GPU_TABLES,
}
