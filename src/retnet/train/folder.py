"""The run's folder on disk: a step is saved whole or not at all, whatever happens meanwhile.

How that is so. A step is written to a hidden folder of `trainer/`, flushed to the disk, and then
renamed to `trainer/step-N`. That one rename is the save: before it the last step is the older one,
after it the newer, and both hold weights, optimizer and progress of one and the same step. All
else follows from `trainer/step-N` and can be made again: what users read, `model.safetensors` and
`config.json` beside `trainer/`, are hard links to the files of `trainer/step-N/model`, put in place
by a rename each, first when the step is saved and again when a run goes on; the oldest step is
deleted only then. Of metrics.jsonl, flushed before the save, what is not older than the step is
written again. A link shares its bytes with the other name, so checksums tell when someone has
written into the file rather than replaced it, or when the disk has. Then the step before serves:
what a run computes does not depend on where it goes on from.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from retnet.hub.files import flush

try:
    import fcntl
except ImportError:  # Windows: nobody watches that two runs do not share a folder
    fcntl = None

FORMAT = 2
PROGRESS = "progress.json"
MODEL = "model"
"""Folder of a step whose files are published."""


class Saved(NamedTuple):
    """A step whose files are as they were written.

    Attributes:
        path: its folder.
        progress: what `RunFolder.commit` got as progress, and the step.
    """

    path: Path
    progress: dict[str, Any]


class RunFolder:
    """A checkpoint folder with a `trainer/` in it.

    Attributes:
        path: the folder.
        trainer: what only resuming needs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trainer = path / "trainer"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other runs out of it while the block lasts.

        Raises:
            ValueError: another process trains in it, or it holds a model that was not trained here.
        """
        if (self.path / "model.safetensors").exists() and not self.trainer.exists():
            raise ValueError(
                f"run.dir ({self.path}) holds a model without the trainer/ that training it "
                "further needs; name another folder"
            )
        self.trainer.mkdir(parents=True, exist_ok=True)
        with (self.trainer / ".lock").open("w") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a crash releases it too
                except BlockingIOError:
                    raise ValueError(
                        f"run.dir ({self.path}) is in use by another process that trains there; "
                        "wait for it, or name another folder"
                    ) from None
            yield

    def steps(self) -> list[Path]:
        """Folders of the steps that are kept, the newest first."""
        steps = {int(p.name[5:]): p for p in self.trainer.glob("step-*") if p.name[5:].isdigit()}
        return [steps[number] for number in sorted(steps, reverse=True)]

    def latest_sound(self) -> tuple[Saved | None, list[str]]:
        """The newest step whose files are as they were written, and what is wrong with newer ones.

        A damaged step is put aside, as `damaged-step-N`.

        Raises:
            ValueError: there are steps, and all are damaged.
        """
        steps, troubles = self.steps(), []
        for step in steps:
            try:
                progress = read_progress(step)
            except ValueError as error:
                troubles.append(str(error))
                continue
            for bad in steps[: len(troubles)]:
                aside = bad.with_name(f"damaged-{bad.name}")
                shutil.rmtree(aside, ignore_errors=True)
                bad.rename(aside)
            return Saved(step, progress), troubles
        if steps:
            raise ValueError(
                f"{troubles[0]}, and no older step is whole; restore one from a backup, or delete "
                f"{self.trainer} and {self.path / 'model.safetensors'} to start over"
            )
        return None, []

    def begin(self) -> Path:
        """Make the folder that the files of the next step are written to."""
        work = self.trainer / ".saving"
        shutil.rmtree(work, ignore_errors=True)
        (work / MODEL).mkdir(parents=True)
        return work

    def commit(self, step: int, progress: dict[str, Any], keep: int = 1) -> None:
        """Make what was written a step, publish it and delete the oldest.

        Args:
            step: updates done.
            progress: what else resuming needs, as JSON.
            keep: steps to keep, this one included.
        """
        work, final = self.trainer / ".saving", self.trainer / f"step-{step}"
        paths = sorted(path for path in work.rglob("*") if path.is_file())
        files = {path.relative_to(work).as_posix(): _flushed_checksum(path) for path in paths}
        text = json.dumps({"format": FORMAT, "step": step, "files": files, **progress})
        (work / PROGRESS).write_text(text + "\n", encoding="utf-8")
        flush(work / PROGRESS)
        for folder in [path for path in work.rglob("*") if path.is_dir()]:
            flush(folder)
        flush(work)
        work.rename(final)
        flush(self.trainer)
        self.publish(final)
        for older in self.steps()[keep:]:
            self._delete(older)

    def abandon(self) -> None:
        """Delete what was written of a step that cannot be saved."""
        shutil.rmtree(self.trainer / ".saving", ignore_errors=True)

    def publish(self, step_folder: Path) -> None:
        """Put a step's model where users look for it."""
        for path in sorted((step_folder / MODEL).iterdir()):
            temporary = self.path / f".{path.name}.tmp"
            temporary.unlink(missing_ok=True)
            try:
                os.link(path, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, temporary)
            temporary.replace(self.path / path.name)
            # POSIX: renaming a link over another of the same file does nothing at all.
            temporary.unlink(missing_ok=True)

    def _delete(self, step_folder: Path) -> None:
        # Renamed first: half a step must not look like one.
        doomed = self.trainer / ".deleting"
        shutil.rmtree(doomed, ignore_errors=True)
        step_folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def read_progress(step_folder: Path) -> dict[str, Any]:
    """What `RunFolder.commit` got as progress, and the step.

    Raises:
        ValueError: a file of the step is missing, or not as it was written.
    """
    try:
        progress = json.loads((step_folder / PROGRESS).read_text(encoding="utf-8"))
        if progress["format"] != FORMAT:
            raise ValueError(f"format {progress['format']}, and this version reads {FORMAT}")
        for name, checksum in progress["files"].items():
            if _checksum(step_folder / name) != checksum:
                raise ValueError(f"{name} is not as it was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{step_folder} is damaged ({error})") from None
    return progress


def _flushed_checksum(path: Path) -> str:
    flush(path)
    return _checksum(path)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
