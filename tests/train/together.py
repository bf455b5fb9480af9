"""Started by torchrun: does several runs one after the other and notes how each process ended."""

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist

from retnet.train import feed, load_config, run, train


def stop_at(step: int) -> None:
    """Ask this process alone to stop when it makes the batch of a step."""
    real = feed.Feed.parts

    def wrapped(self: feed.Feed, number: int) -> Any:
        if number == step:
            setattr(feed.Feed, "parts", real)  # noqa: B010 - its type has another name for `number`
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, number)

    setattr(feed.Feed, "parts", wrapped)  # noqa: B010


def main(base: Path) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    run.plot_metrics = lambda *_: None  # a second per run
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for job in json.loads((base / "jobs.json").read_text()):
        config = load_config(base / "run.toml", {"run.dir": job["dir"], **job["settings"]})
        if rank == 1 and "stop_at" in job:
            stop_at(job["stop_at"])
        try:
            outcome = f"step {train(config, base=base).step}"
        except (ValueError, SystemExit) as error:
            outcome = f"{type(error).__name__}: {error}"
        (base / f"{job['dir']}.rank-{rank}").write_text(outcome)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
