from pathlib import Path

import pytest
import torch

from retnet.bench import run_bench
from retnet.bench.gpu import GPU_BENCHES
from retnet.bench.record import read_records


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_suite_runs_at_toy_sizes_on_the_cpu(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    result = run_bench("gpu", out=tmp_path, quick=True, progress=lambda *step: told.append(step))
    assert result.failed == []
    assert [done for _, done, _ in told] == list(range(len(told)))
    assert {total for _, _, total in told} == {len(told) - 1}
    assert {record.bench for record in result.records} == {
        "gpu/machine",
        "gpu/op",
        "gpu/train_step",
        "gpu/decode",
    }
    assert all(record.quick for record in result.records)
    assert sorted(map(repr, read_records(tmp_path))) == sorted(map(repr, result.records))
    assert all(table.rows for table in result.tables)
    assert {path.name for path in result.pictures} <= {"gpu-ops.png", "gpu-decode.png"}
    assert result.skipped[0].startswith("flash-linear-attention runs on GPUs only")


def test_a_part_can_be_run_alone(tmp_path: Path) -> None:
    result = run_bench("gpu-train", out=tmp_path, quick=True)
    assert {record.bench for record in result.records} == {"gpu/machine", "gpu/train_step"}
    assert list(GPU_BENCHES) == ["gpu", "gpu-ops", "gpu-train", "gpu-decode"]


@pytest.mark.parametrize("name", GPU_BENCHES)
def test_without_a_gpu_it_says_what_it_needs(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="or add --quick to see at toy sizes on the CPU"):
        run_bench(name, out=tmp_path)
