"""Workers of a cluster, and clusters that are not there."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from experiment_support import Sums, means, setup
from retnet.reproduce import executors
from retnet.reproduce.command import Wish
from retnet.reproduce.executors import cluster_size, connected
from retnet.reproduce.runner import run_experiment

pytest.importorskip(
    "distributed", reason="distributed is not installed; pip install 'retnet[cluster]'"
)

from distributed import LocalCluster

pytestmark = pytest.mark.filterwarnings("ignore")

CELLS = 2 * (2 + 1)


def local_cluster(workers: int) -> Any:
    return LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=cast(Any, None), host="127.0.0.1"
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a scheduler with two workers, processes of their own."""
    with local_cluster(2) as own:
        yield own.scheduler_address


def test_two_workers_of_a_cluster_share_the_cells(cluster: str, tmp_path: Path) -> None:
    """Each cell waits until two processes have begun one, so a single worker would never end."""
    assert cluster_size(cluster) == 2
    two = means(tmp_path, workers=2, cluster=cluster)
    results = run_experiment(Sums(meet=True), setup(), two)
    assert len(results) == len({result.key for result in results}) == CELLS
    processes = {name.split()[-1] for name in os.listdir(tmp_path / "work")}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes


def test_an_error_of_a_cell_comes_back(cluster: str) -> None:
    with executors.open_executor(2, cluster) as executor, pytest.raises(ZeroDivisionError):
        executor.submit(divmod, 1, 0).result()


def test_a_scheduler_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "PATIENCE_S", 0.2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ValueError, match=f"no scheduler answers at {address}"), connected(address):
        pass


def test_a_scheduler_without_workers_is_told() -> None:
    with (
        local_cluster(0) as empty,
        pytest.raises(ValueError, match="has no workers; start `dask worker tcp://"),
    ):
        cluster_size(empty.scheduler_address)


def test_a_cluster_has_its_own_workers() -> None:
    with pytest.raises(ValueError, match="a cluster has workers of its own, and 2 more are asked"):
        Wish(name="table5", cluster="tcp://x:1", workers=2)
