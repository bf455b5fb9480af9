"""Run checks in several processes at once, which find each other through gloo.

A forked server imports PyTorch once; each process is then a fork of it and starts in a moment.
"""

import json
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

Check = Callable[[], None]
PATIENCE = timedelta(seconds=60)


def run_together(num_ranks: int, checks: Sequence[Check], folder: Path) -> None:
    """Run each check in every process at the same time.

    Args:
        num_ranks: processes.
        checks: functions of a module that a new process can import: none of a test file. All
            processes go through them in order, so a check must reach the same collectives in each.
        folder: an empty one.

    Raises:
        AssertionError: some failed; the message says which, where and how.
    """
    start_server("processes_preload")
    start_processes(
        _work, (num_ranks, list(checks), folder), nprocs=num_ranks, start_method="forkserver"
    )
    failed = [
        f"rank {rank}, {check}:\n{failure}"
        for rank in range(num_ranks)
        for check, failure in json.loads(_report(folder, rank).read_text()).items()
    ]
    assert not failed, "\n".join(failed)


def start_server(preload: str) -> None:
    """Start, once, the server whose forks the processes are.

    Args:
        preload: a module of what it imports; whoever comes first decides.
    """
    multiprocessing.set_forkserver_preload(["__main__", preload])
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(paths)):  # for the preload
        forkserver.ensure_running()


def _work(rank: int, num_ranks: int, checks: list[Check], folder: Path) -> None:
    warnings.simplefilter("error")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=num_ranks,
        timeout=PATIENCE,
    )
    failures = {}
    for check in checks:
        try:
            check()
        except Exception:  # every other check still has something to say
            failures[check.__name__] = traceback.format_exc()
    _report(folder, rank).write_text(json.dumps(failures))
    dist.destroy_process_group()


def _report(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"
