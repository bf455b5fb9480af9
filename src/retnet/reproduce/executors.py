"""Where cells are computed: in this process, in others beside it, or on a cluster."""

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from os import _exit
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from distributed import Client

PATIENCE_S = 20
"""To wait for a cluster's scheduler to answer."""


@contextmanager
def open_executor(workers: int, cluster: str = "") -> Iterator[Executor]:
    """Something to submit cells to.

    Args:
        workers: processes; 1 is this one.
        cluster: address of a scheduler of Dask, whose workers are used instead.

    Raises:
        ValueError: there is no such scheduler, or `retnet[cluster]` is not installed.
    """
    if cluster:
        with connected(cluster) as client:
            # not pure: what a cell leaves in its folder is part of what it does
            yield client.get_executor(pure=False)
    elif workers == 1:
        yield _Here()
    else:
        with _processes(workers) as executor:
            yield executor


@contextmanager
def connected(address: str) -> "Iterator[Client]":
    """A connection to a scheduler that has workers.

    Raises:
        ValueError: there is none at that address, it has no workers, or `retnet[cluster]` is not
            installed.
    """
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ValueError(
            f"a cluster needs dask.distributed ({error}); pip install 'retnet[cluster]' brings it"
        ) from None
    try:
        client = Client(address, timeout=PATIENCE_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no scheduler answers at {address} ({error}); start `dask scheduler` and, on each "
            "machine, `dask worker ADDRESS`"
        ) from None
    with client:
        yield client


def cluster_size(address: str) -> int:
    """How many workers a cluster has.

    Raises:
        ValueError: it cannot be reached, or has none.
    """
    with connected(address) as client:
        info: dict[str, Any] = client.scheduler_info(n_workers=-1)
    if not info["workers"]:
        raise ValueError(
            f"the scheduler at {address} has no workers; start `dask worker {address}` on the "
            "machines that are to compute"
        )
    return len(info["workers"])


class _Here(Executor):
    """Computes in this process, at once."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def _processes(workers: int) -> Iterator[Executor]:
    """Processes that share this machine's cores evenly."""
    threads = max(torch.get_num_threads() // workers, 1)
    executor = ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),  # threads of a fork would lock up
        initializer=_begin_worker,
        initargs=(threads,),
    )
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _begin_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        _exit(1)
