from pathlib import Path

import pytest

from bench.gpu.benches import one
from retnet.bench.gpu import GPU_TABLES
from retnet.bench.gpu.decode_plot import plot_decoding
from retnet.bench.gpu.op_plot import plot_ops
from retnet.bench.gpu.tables import decode_table, ops_table, train_table
from retnet.bench.machine import Provenance
from retnet.bench.page import update_docs
from retnet.bench.record import Gate, Record, Recorder
from retnet.bench.timing import Spread

SOURCE = Provenance(
    device="A GPU, 80 GiB",
    threads=2,
    torch="2.13.0",
    python="3.11.7",
    commit="abc1234",
    dirty=False,
)
PASSED = Gate(True, "right")
FULL = {"out_of_memory": Spread.of([1.0])}
PAGE = Path(__file__).parents[3] / "docs" / "gpu.md"


def fill(folder: Path) -> list[Record]:
    """Made-up results."""
    made = Recorder(folder, SOURCE, quick=False)
    made.add("gpu/machine", {"width": 8192}, {"matmul_tflops": one(700.0)}, PASSED)
    for by in ("attention (flash, torch 2.13.0)", "retnet"):
        for D_v, T in ((256, 2048), (256, 512), (512, 512)):
            case = {"D_k": 256, "D_v": D_v, "T": T, "B": 2, "H": 8, "dtype": "bfloat16", "by": by}
            for passes in ("fwd", "fwdbwd"):
                metrics = {
                    f"{passes}_ms": one(0.5),
                    f"{passes}_share_of_copy": one(0.6),
                    f"{passes}_share_of_matmul": one(0.3),
                }
                if by != "retnet":
                    metrics[f"{passes}_time_over_retnet"] = one(2.0)
                made.add("gpu/op", {**case, "launch": "eager"}, metrics, PASSED)
    for by in ("retnet", "retnet with attention"):
        case = {"model": "paper-1.3b", "by": by, "T": 8192, "checkpointing": True, "B": 8}
        metrics = {"tokens_per_s": one(30_000.0), "share_of_matmul": one(0.4), "peak_gib": one(50)}
        made.add("gpu/train_step", case, FULL if by != "retnet" else metrics, PASSED)
        for B in (1, 8):
            for context in (1024, 4096):
                case = {"model": "6.7b", "parameters": 6_700_000_000, "dtype": "bfloat16"}
                case |= {"by": by, "B": B, "context": context}
                for launch, ms in (("eager", 20.0), ("graph", 6.0)):
                    metrics = {
                        "step_ms": one(ms),
                        "tokens_per_s": one(1e3 * B / ms),
                        "share_of_copy": one(0.7),
                        "peak_gib": one(14.0),
                    }
                    full = by != "retnet" and (B, context) == (8, 4096)
                    case["launch"] = launch
                    made.add("gpu/decode", case, FULL if full else metrics, PASSED)
    return made.records


def test_ours_stands_above_its_rivals_and_shorter_texts_above_longer(tmp_path: Path) -> None:
    rows = ops_table(fill(tmp_path)).rows
    assert [row[:2] for row in rows[:4]] == [
        ("256/256, T 512, fwd", "retnet, eager"),
        ("256/256, T 512, fwd", "attention (flash, torch 2.13.0), eager"),
        ("256/256, T 2,048, fwd", "retnet, eager"),
        ("256/256, T 2,048, fwd", "attention (flash, torch 2.13.0), eager"),
    ]
    assert rows[1][2:] == ("0.5 (0.45-0.55)", "60%", "30%", "2.00 (1.80-2.20)")


def test_what_did_not_fit_is_said_in_its_row(tmp_path: Path) -> None:
    records = fill(tmp_path)
    assert [row[1:3] for row in train_table(records).rows] == [
        ("retnet", "30,000 (27,000-33,000)"),
        ("retnet with attention", "out of memory"),
    ]
    last = decode_table(records).rows[-1]
    assert last[:3] == (
        "B 8, context 4,096",
        "retnet with attention, 6.7e+03 M parameters, graph",
        "out of memory",
    )


@pytest.mark.parametrize("name", GPU_TABLES)
def test_tables_are_rectangular_and_do_not_depend_on_the_order_of_cases(
    name: str, tmp_path: Path
) -> None:
    records = fill(tmp_path)
    table = GPU_TABLES[name](records)
    assert table.rows
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert table == GPU_TABLES[name](list(reversed(records)))
    assert GPU_TABLES[name]([]).rows == []


def test_the_page_says_what_the_committed_results_say(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    assert not update_docs(page, PAGE.parents[1] / "benchmarks" / "results")


def test_pictures_are_drawn_from_records(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'retnet[plot]'")
    records = fill(tmp_path)
    for plot in (plot_ops, plot_decoding):
        path = tmp_path / f"{plot.__name__}.png"
        plot(records, path)
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        with pytest.raises(ValueError, match="records to draw"):
            plot([], path)
