import subprocess
import sys
from mmap import mmap
from pathlib import Path

import pytest
import torch

from retnet.bench import machine
from retnet.bench.machine import measure_ceilings, peak_mib, provenance, resident_mib
from retnet.bench.timing import Effort


def test_provenance_says_what_ran_and_where() -> None:
    found = provenance()
    assert found.torch == torch.__version__
    assert found.threads == torch.get_num_threads()
    assert found.python == sys.version.split()[0]
    assert "core" in found.device


def test_commit_of_a_package_is_not_that_of_the_repository_around_it(tmp_path: Path) -> None:
    """A package installed into someone's repository has no commit there."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "__init__.py").write_text("")
    assert machine._commit(tmp_path) == ("unknown", True)


def test_a_package_is_dirty_when_its_own_files_changed(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    identity = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "m")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    commit, dirty = machine._commit(package)
    assert len(commit) == 12
    assert not dirty
    (tmp_path / "results.jsonl").write_text("a result\n")
    assert machine._commit(package) == (commit, False)
    (package / "__init__.py").write_text("changed = 1\n")
    assert machine._commit(package) == (commit, True)


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's; others ask getrusage")
def test_peak_memory_of_a_process_is_not_its_parents() -> None:
    """`ru_maxrss` of a child began at the parent's size, and hid what the child itself took."""
    held = torch.ones(512 << 18)  # 512 MiB, touched
    code = "from retnet.bench.machine import peak_mib; print(peak_mib())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert held.sum() > 0
    assert 1 < float(child.stdout) < peak_mib() - 256


def test_resident_memory_grows_with_what_is_held() -> None:
    before = resident_mib()
    with mmap(-1, 256 << 20) as held:  # not malloc's: it may have freed as much to give again
        held.write(b"1" * (256 << 20))
        assert resident_mib() - before > 200


def test_ceilings_are_rates_of_both_dtypes_of_copying_and_of_reading() -> None:
    found = measure_ceilings(Effort(0, 2, 0.0), width=64, copy_mib=1)
    assert set(found) == {
        "float32/matmul_gflops",
        "bfloat16/matmul_gflops",
        "copy_gb_per_s",
        "read_gb_per_s",
    }
    assert all(spread.median > 0 and spread.n == 2 for spread in found.values())


def test_a_block_is_read_whole_in_the_quickest_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ways read the same ones: what each returns says how many."""
    found = []
    monkeypatch.setattr(machine, "_least_seconds", lambda way: found.append(way()) or len(found))
    reads = machine.Reads()
    reads.reserve(5 * 4096)
    reads.of(3 * 4096 + 5)
    assert [int(sums.sum()) for sums in found] == [3 * 1024] * 3
    reads.of(5 * 4096)
    with pytest.raises(ValueError, match="reserve the largest first"):
        reads.of(6 * 4096)
