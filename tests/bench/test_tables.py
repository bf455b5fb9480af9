import io
from pathlib import Path

import pytest
from rich.console import Console

from retnet.bench.decode_plot import plot_decode
from retnet.bench.gpu import GPU_TABLES
from retnet.bench.machine import Provenance
from retnet.bench.page import update_docs
from retnet.bench.picture import spread_out
from retnet.bench.prefill_plot import plot_prefill
from retnet.bench.record import Gate, Record, Recorder
from retnet.bench.tables import SOAK_ROWS, TABLES, decode_table, ops_table, train_table
from retnet.bench.targets import targets_table
from retnet.bench.timing import Spread
from retnet.bench.train_plot import plot_train

SOURCE = Provenance(
    device="A CPU, 2 cores",
    threads=2,
    torch="2.13.0",
    python="3.11.7",
    commit="abc1234",
    dirty=False,
)
PASSED = Gate(True, "right")
PNG = b"\x89PNG\r\n\x1a\n"


def one(value: float) -> Spread:
    return Spread(value, 0.9 * value, 1.1 * value, 5)


def fill(folder: Path, *, quick: bool = False) -> list[Record]:
    """Made-up results of every bench, in an order that no table has."""
    made = Recorder(folder, SOURCE, quick=quick)
    model = {"model": "small", "parameters": 16_800_000}
    for dtype in ("bfloat16", "float32"):
        shape = {"B": 1, "H": 2, "D_k": 256, "D_v": 512, "T": 2048, "dtype": dtype}
        for by, form in (("torchscale 0.3.0", "chunkwise"), ("retnet", "chunkwise")):
            metrics = {
                "fwd_ms": one(1234.5),
                "fwd_gflops": one(400.0),
                "fwd_share_of_matmul": one(0.5),
            }
            if by != "retnet":
                metrics["fwd_time_over_retnet"] = one(1.5)
            made.add("op/retention", {**shape, "by": by, "form": form}, metrics, PASSED)
    for N in (512, 64):
        for form in ("recurrent", "chunkwise"):
            case = {"T": 4096, "N": N, "B": 1, "dtype": "complex64", "factors": "channel"}
            metrics = {"fwd_ms": one(30.0), "fwdbwd_ms": one(70.0)}
            if form == "recurrent":
                metrics["fwd_time_over_chunkwise"] = one(6.0)
            made.add("op/scan", {**case, "form": form}, metrics, PASSED)
    for activity in ("train", "prefill", "decode"):
        case = {"model": "small", "B": 1, "T": 64, "dtype": "float32"}
        over = "time_over_retnet_int8" if activity == "decode" else "time_over_retnet"
        for by, metrics in (
            ("retnet", {"tokens_per_s": Spread.of([3.0])}),
            ("rwkv", {"tokens_per_s": Spread.of([1.0]), over: Spread.of([3.0])}),
        ):
            made.add(f"rwkv/{activity}", {**case, "by": by}, metrics, PASSED)
    for T in (8192, 2048):
        for by in ("transformers 5 Llama", "retnet"):
            case = {**model, "B": 1, "T": T, "precision": "float32", "by": by}
            metrics = {
                "tokens_per_s": one(12345.0),
                "peak_mib": one(900.0),
                "peak_over_start_mib": one(700.0),
            }
            if by == "retnet":
                metrics["share_of_matmul"] = one(0.61)
            else:
                metrics["step_time_over_retnet"] = one(2.2)
            made.add("train/step", case, metrics, PASSED)
            metrics = {
                "prompt_ms": one(100.0),
                "tokens_per_s": one(12345.0),
                "kept_bytes": one(2.0**22),
                "peak_mib": one(900.0),
                "peak_over_start_mib": one(700.0),
            }
            case = {**model, "T": T, "dtype": "bfloat16", "by": by}
            made.add("prefill/prompt", case, metrics, PASSED)
        metrics = {
            "tokens_per_s": one(5000.0),
            "kept_bytes": one(2.0**22),
            "process_mib": one(300.0),
        }
        case = {**model, "T": T, "dtype": "bfloat16", "by": "retnet"}
        made.add("prefill/on", case, metrics, PASSED)
    for form in ("chunkwise", "parallel", "recurrent"):
        case = {"model": "small-4m", "gain": 8, "dtype": "float32", "form": form}
        metrics = {"max_abs": one(1e-6), "relative": one(1e-5), "apart": one(2e-6)}
        made.add("forms", case, metrics, PASSED)
    for context in (100_000, 8192):
        for B in (8, 1):
            for by in ("llama.cpp", "retnet"):
                case = {**model, "B": B, "dtype": "float16", "context": context, "by": by}
                metrics = {
                    "token_ms": one(4.0),
                    "tokens_per_s": one(B * 250.0),
                    "kept_bytes": one(2.0**22),
                    "weight_bytes": one(2.0**25),
                    "share_of_reading": one(0.5),
                }
                if by != "retnet":
                    metrics["time_over_retnet"] = one(3.0)
                made.add("decode/step", case, metrics, PASSED)
    for carried, tokens in ((True, 8192), (False, 4096), (True, 4096)):
        case = {
            "parameters": 2_000_000,
            "precision": "float32",
            "seq_len": 4096,
            "carried": carried,
            "tokens": tokens,
        }
        metrics = {"process_mib": one(800.0), "tokens_per_s": one(5000.0), "loss": one(2.0)}
        made.add("document", case, metrics, PASSED)
    metrics = {"kills_saving": one(9.0), "different_bits": one(0.0), "whole_s": one(60.0)}
    case = {"steps": 100, "save_every": 20, "kills": 9}
    made.add("kills", case, {**metrics, "killed_s": one(600.0)}, PASSED)
    of_sessions = ("resume_ms", "commit_ms", "fork_ms", "list_ms", "open_ms")
    for number in (10, 20):
        case = {"sessions": number, "state_bytes": 4096}
        made.add("sessions", case, {name: one(1.0) for name in of_sessions}, PASSED)
    for load in ("requests", "long prompt"):
        case = {"parameters": 10**7, "B": 16, "load": load}
        made.add("serve/engine", case, {"b_ms": one(2.0), "a_ms": one(1.0)}, PASSED)
    for by in ("transformers", "retnet"):
        case = {"model": "small", "context": 8192, "B": 4, "by": by, "dtype": "float32"}
        speeds = {"tokens_per_s": one(9.0), "tokens_per_s_with_reading": one(3.0)}
        made.add("serve/beside", case, speeds, PASSED)
    waits = ("first_token_ms", "between_tokens_ms", "whole_answer_ms")
    of_load = ("requests_per_s", "tokens_per_s", "share_of_engine")
    of_load += tuple(f"{wait}_p{percent}" for wait in waits for percent in (50, 95, 99))
    for clients in (16, 1):
        case = {"model": "small", "B": 16, "clients": clients}
        made.add("serve/load", case, {name: one(1.0) for name in of_load}, PASSED)
    case = {"model": "small", "minutes": 10.0, "clients": 20, "B": 8, "queue": 6}
    made.add("serve/soak", case, {name: one(1.0) for name in SOAK_ROWS}, PASSED)
    metrics = {"float32/matmul_gflops": one(200.0), "copy_gb_per_s": one(10.0)}
    made.add("machine", {"width": 2048}, metrics, PASSED)
    return made.records


def test_ops_table_has_torchscale_right_below_ours(tmp_path: Path) -> None:
    table = ops_table(fill(tmp_path))
    assert [row[:2] for row in table.rows] == [
        ("float32, fwd", "retnet, chunkwise"),
        ("float32, fwd", "torchscale 0.3.0, chunkwise"),
        ("bfloat16, fwd", "retnet, chunkwise"),
        ("bfloat16, fwd", "torchscale 0.3.0, chunkwise"),
    ]
    assert table.rows[1][2:] == ("1,234 (1,111-1,358)", "400", "50%", "1.50 (1.35-1.65)")


def test_captions_say_what_all_rows_share_and_where_they_were_measured(tmp_path: Path) -> None:
    records = fill(tmp_path)
    day = records[0].utc[:10]
    assert ops_table(records).caption == (
        "B 1, H 2, D_k 256, D_v 512, T 2,048. A CPU, 2 cores, 2 threads, torch 2.13.0, "
        f"Python 3.11.7; commit abc1234; {day}. Medians; in brackets the middle three fifths."
    )
    assert [row[:2] for row in train_table(records).rows] == [
        ("T 2,048, float32", "retnet"),
        ("T 2,048, float32", "transformers 5 Llama"),
        ("T 8,192, float32", "retnet"),
        ("T 8,192, float32", "transformers 5 Llama"),
    ]


def test_decode_table_says_what_a_token_costs_and_keeps(tmp_path: Path) -> None:
    rows = decode_table(fill(tmp_path)).rows
    assert len(rows) == 8
    assert rows[-1] == (
        "after 100,000, B 8",
        "llama.cpp, float16",
        "2,000",
        "4",
        "32",
        "4",
        "50%",
        "3.00",
    )


@pytest.mark.parametrize("name", [name for name in TABLES if name not in GPU_TABLES])
def test_tables_are_rectangular_and_do_not_depend_on_the_order_of_cases(
    name: str, tmp_path: Path
) -> None:
    records = fill(tmp_path)
    table = TABLES[name](records)
    assert table.rows
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert table == TABLES[name](list(reversed(records)))
    assert table.markdown().count("\n| ") == len(table.rows) + 1


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_nothing_are_empty(name: str) -> None:
    assert TABLES[name]([]).rows == []


def page(folder: Path, name: str = "ops") -> Path:
    path = folder / "page.md"
    path.write_text(f"# Speed\n<!-- begin: {name} -->\nold\n<!-- end -->\nafter\n")
    return path


def test_docs_get_the_table_between_their_markers_once(tmp_path: Path) -> None:
    table = ops_table(fill(tmp_path / "results"))
    path = page(tmp_path)
    assert update_docs(path, tmp_path / "results")
    text = path.read_text()
    assert text == (f"# Speed\n<!-- begin: ops -->\n\n{table.markdown()}\n<!-- end -->\nafter\n")
    assert not update_docs(path, tmp_path / "results")
    assert path.read_text() == text


def test_docs_get_the_pictures_that_they_show(tmp_path: Path) -> None:
    fill(tmp_path / "results")
    for name in ("shown.png", "other.png"):
        (tmp_path / "results" / name).write_bytes(PNG)
    path = page(tmp_path / "results")
    path.write_text(path.read_text() + "![shown](images/shown.png)\n")
    update_docs(path, tmp_path / "results", (tmp_path / "results").glob("*.png"))
    assert [p.name for p in (path.parent / "images").iterdir()] == ["shown.png"]


def test_docs_do_not_show_quick_runs(tmp_path: Path) -> None:
    fill(tmp_path / "results", quick=True)
    path = page(tmp_path)
    update_docs(path, tmp_path / "results")
    assert "No results yet: `retnet bench ops`." in path.read_text()


def test_an_unknown_marker_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no table "op"; name one of ops, scan, rwkv, train'):
        update_docs(page(tmp_path, "op"), tmp_path)


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# Speed\n<!-- begin: ops -->\nno end\n")
    with pytest.raises(ValueError, match="has no <!-- begin: NAME --> line with an <!-- end -->"):
        update_docs(path, tmp_path)


def test_targets_are_ratios_of_the_latest_medians(tmp_path: Path) -> None:
    fill(tmp_path)
    records = fill(tmp_path)  # measured again: only the latest count
    rows = {row[0]: row[1:] for row in targets_table(records).rows}
    assert rows["decoding, 1 row: speed / llama.cpp, small"] == ("at least 3", "1.00", "no")
    assert rows["decoding, 8 rows: share of the reading speed, small"][2] == "yes"
    assert not any("torchscale" in claim for claim in rows)  # it was not there


PLOTS = {"train": plot_train, "prefill": plot_prefill, "decode": plot_decode}


@pytest.mark.parametrize("name", PLOTS)
def test_pictures_are_drawn_from_records(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'retnet[plot]'")
    path = tmp_path / f"{name}.png"
    PLOTS[name](fill(tmp_path), path)
    assert path.read_bytes().startswith(PNG)


@pytest.mark.parametrize("name", PLOTS)
def test_a_picture_of_nothing_is_refused(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'retnet[plot]'")
    with pytest.raises(ValueError, match=rf"records to draw {name}\.png from; run `retnet bench"):
        PLOTS[name]([], tmp_path / f"{name}.png")


def test_names_beside_lines_never_overlap() -> None:
    assert spread_out([0.0, 1.0, 50.0], 10.0, 0.0, 100.0) == [0, 10, 50]
    assert spread_out([95.0, 98.0, 99.0], 10.0, 0.0, 100.0) == [80, 90, 100]
    assert spread_out([5.0, 5.0, 5.0], 10.0, 0.0, 15.0) == [0, 10, 20]  # too many: upwards


@pytest.mark.parametrize("name", [name for name in TABLES if name not in GPU_TABLES])
def test_a_narrow_terminal_cuts_no_number_in_two(name: str, tmp_path: Path) -> None:
    table = TABLES[name](fill(tmp_path))
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table.rich())
    shown = console.export_text().split()
    words = {word for row in table.rows for cell in row for word in cell.split()}
    assert not words - {*shown}
