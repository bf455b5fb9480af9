"""Checkpoints written beside the training, by every process its own part, and read back by any.

The weights are gathered and written as one file, for use; what only resuming needs, the averages
of the optimizer and the carried states, goes through PyTorch's distributed checkpoints, where each
process writes what it holds, as safetensors, and any other number of processes can read it.
"""

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from retnet.train.folder import RunFolder
from retnet.train.ranks import Ranks
from retnet.train.sharding import whole

STATE = "state"
"""Folder of a step for what only resuming needs."""

# A run of one process is no mistake.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)

Write = Callable[[int, Path, dict[str, Tensor]], None]


class Saver:
    """Saves steps in the background: one at a time, and the run goes on meanwhile.

    What is to be saved is copied before `save` returns. The step appears in the folder when all of
    it is on the disk; a failure is raised by the next call, in all processes.

    Args:
        folder: the run's.
        ranks: processes that save together.
        write: writes files of the step into its folder, the model's into `model`; it gets all
            weights, whole, and is called in the first process only.
        keep: steps to keep.
    """

    def __init__(self, folder: RunFolder, ranks: Ranks, write: Write, keep: int) -> None:
        self._folder = folder
        self._ranks = ranks
        self._write = write
        self._keep = keep
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None

    def save(
        self,
        step: int,
        progress: dict[str, Any],
        weights: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
    ) -> None:
        """Copy everything, and write it in the background.

        Args:
            step: updates done.
            progress: what else resuming needs, as JSON.
            weights: parameters by name.
            state: further tensors by name.

        Raises:
            ValueError: the step before could not be written.
        """
        self.wait()
        gathered = {}
        for name, tensor in weights.items():
            full = whole(tensor.detach())
            if self._ranks.first:
                gathered[name] = full.to("cpu", copy=True)
        work = self._ranks.on_first(self._guarded(step, self._folder.begin))
        alone = self._ranks.size == 1
        staged = async_save(
            dict(state),
            storage_writer=HuggingFaceStorageWriter(str(work / STATE), save_distributed=True),
            process_group=self._ranks.saving,
            no_dist=alone,
        )
        assert isinstance(staged, Future)

        def finish() -> None:
            staged.result()
            if self._ranks.first:
                self._write(step, work, gathered)
                self._folder.commit(step, progress, self._keep)

        self._pending = self._executor.submit(self._together, self._guarded(step, finish))

    @property
    def failed(self) -> bool:
        """Whether something has gone wrong in the background by now, which `wait` raises."""
        pending = self._pending
        return pending is not None and pending.done() and pending.exception() is not None

    def wait(self) -> None:
        """Return when the last step that was to be saved is, by all processes.

        Raises:
            ValueError: it cannot be written; the step before is still there.
            SystemExit: likewise, in all processes but the first, which says why.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let what is being written end, well or not; for a run that ends with an error."""
        self._executor.shutdown(wait=True)

    def _together(self, work: Callable[[], Any]) -> None:
        """Return when all processes have done their part, or fail in all of them."""
        fault = None
        try:
            work()
        except BaseException as error:  # raised below, when the others know
            fault = error
        failed = self._ranks.any(fault is not None, group=self._ranks.saving)
        if fault is not None and (self._ranks.first or not isinstance(fault, ValueError)):
            raise fault
        if failed:
            raise self._ranks.failure("another process cannot write its part of a checkpoint")

    def _guarded(self, step: int, work: Callable[[], Any]) -> Callable[[], Any]:
        def guarded() -> Any:
            try:
                return work()
            except BaseException as error:
                if self._ranks.first:
                    self._folder.abandon()
                if cause := _disk_error(error):
                    steps = self._folder.steps()
                    kept = f"{steps[0]} is kept" if steps else "there is none before it"
                    raise ValueError(
                        f"the checkpoint of step {step} cannot be written ({cause}); {kept}: "
                        "make room or mend the disk, and run the same command again"
                    ) from error
                raise

        return guarded


def read_tensors(folder: Path, tensors: Mapping[str, Tensor], *, alone: bool) -> None:
    """Read tensors, or this process's parts of them, from safetensors files into their own memory.

    Into their own: tensors of a file lie at odd addresses, where sums may round differently.

    Args:
        folder: `model` or `state` of a step, written by any number of processes.
        tensors: by name; overwritten.
        alone: whether this is a run of one process.
    """
    with torch.no_grad():
        detached = {name: tensor.detach() for name, tensor in tensors.items()}
        load(detached, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)


def _disk_error(error: BaseException) -> OSError | None:
    """What the disk said, through the wrappings of the checkpoint library."""
    if isinstance(error, CheckpointException):
        found = (_disk_error(wrapped[0]) for wrapped in error.failures.values())
        return next((each for each in found if each is not None), None)
    if "No space left" in str(error) and not isinstance(error, OSError):
        return OSError(str(error))  # safetensors has an error class of its own
    return error if isinstance(error, OSError) else None
