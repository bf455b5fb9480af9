"""The processes of a run: who this one is, and the little they must tell each other."""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from retnet.ops import SequenceRanks

T = TypeVar("T")

PATIENCE = timedelta(hours=24)
"""Longest wait for the first process, which may be tokenising a large corpus."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a run; alone unless `torchrun` started it.

    Neighbouring ranks share rows: of `sequence` ranks in a row each reads its slice of the same
    rows, and the groups of them share the rows of a step.

    Attributes:
        device: where this process computes.
        rank: this process, from 0.
        size: processes of the run.
        local_size: processes of this machine.
        sequence: processes that one row is spread over.
        row: those of them that share this one's rows; None if rows are whole.
        mesh: all processes as (data, sequence); None if there is one.
        control: a gloo group for flags and messages, which never wait for a device.
        saving: a gloo group of its own for checkpoints, which are written beside the training.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    local_size: int = 1
    sequence: int = 1
    row: SequenceRanks | None = None
    mesh: DeviceMesh | None = None
    control: dist.ProcessGroup | None = None
    saving: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that talks, logs and commits."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which share of a step's rows this process reads, of `data_size`."""
        return self.rank // self.sequence

    @property
    def data_size(self) -> int:
        """Shares of a step's rows."""
        return self.size // self.sequence

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, on the device; in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool, group: dist.ProcessGroup | None = None) -> bool:
        """Whether the flag is up in any process; asked in `control` unless a group is given."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=group or self.control)
        return bool(flags.item())

    def failure(self, message: str, kind: type[ValueError] = ValueError) -> BaseException:
        """What to raise where all processes find the same fault: only the first one says it."""
        return kind(message) if self.first else SystemExit(1)

    def barrier(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def on_first(self, work: Callable[[], T]) -> T:
        """Let the first process do some work and give its result to all.

        Args:
            work: its result travels as a pickle from one process of the run to the others.

        Raises:
            ValueError: the work's, in the first process.
            SystemExit: in the others, which have nothing to add to its message.
        """
        if self.size == 1:
            return work()
        message: list = [None, None]
        if self.first:
            try:
                message = [None, work()]
                pickle.dumps(message)  # before the others wait for it
            except ValueError as error:
                self._broadcast([error, None])
                raise
        self._broadcast(message)
        error, result = message
        if error is not None:
            raise SystemExit(1)
        return result

    def _broadcast(self, message: list) -> None:
        dist.broadcast_object_list(message, src=0, group=self.control)


@contextmanager
def joined(sequence: int = 1) -> Iterator[Ranks]:
    """Join the other processes of a run for the length of a block, if `torchrun` started them.

    Args:
        sequence: processes that one row of text is spread over.

    Raises:
        ValueError: the number of processes is no multiple of `sequence`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size % sequence:
        raise ValueError(
            f"train.sequence_ranks ({sequence}) must divide the number of processes ({size}); "
            "start that many with torchrun --nproc-per-node, or change it"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if size == 1:
        yield Ranks(torch.device("cuda") if cuda else device)
        return
    if cuda:
        torch.cuda.set_device(device)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    mesh = init_device_mesh(
        device.type, (size // sequence, sequence), mesh_dim_names=("data", "sequence")
    )
    yield Ranks(
        device,
        rank=dist.get_rank(),
        size=size,
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        sequence=sequence,
        row=SequenceRanks.of(mesh["sequence"].get_group()) if sequence > 1 else None,
        mesh=mesh,
        control=_gloo(),
        saving=_gloo(),
    )
    # Not after an error: the others may be waiting for this process in a collective, and only
    # its end, which torchrun notices, releases them.
    if ours:
        dist.destroy_process_group()


def _gloo() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)
    return group
