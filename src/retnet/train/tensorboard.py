"""The log as TensorBoard reads it: the lines of metrics.jsonl as scalars and texts."""

import time
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from retnet.train.metrics import Metrics

FOLDER = "tensorboard"
FLUSH_SECONDS = 5

SPEED = ("tokens_per_s", "mfu")
NO_CURVES = ("step", "tokens", "seconds")
"""Axes, not values: TensorBoard has steps and times of its own."""


class TensorBoardLog:
    """Writes event files into `tensorboard/` of a run's folder.

    They are made anew from the lines so far whenever a run goes on, so that no step shows twice
    and none is missing, wherever the last process was killed. The time of an event is that spent
    training: a pause between two sessions is no gap in the curve.
    """

    def __init__(self, folder: Path, past: Sequence[Metrics]) -> None:
        """Replace what is there by the lines so far.

        Args:
            folder: the run's.
            past: lines of metrics.jsonl.
        """
        for old in (folder / FOLDER).glob("events.out.tfevents.*"):
            _forget(old)
        # With purge_step a TensorBoard that looks on forgets what it has read so far.
        self._writer = SummaryWriter(str(folder / FOLDER), purge_step=0, flush_secs=FLUSH_SECONDS)
        spent = [line["seconds"] for line in past if "seconds" in line]
        self._seconds = 0.0
        self._began = time.time() - (spent[-1] if spent else 0.0)
        for metrics in past:
            self.append(metrics)

    def append(self, metrics: Metrics) -> None:
        """Write the values of a line."""
        step = metrics["step"]
        self._seconds = metrics.get("seconds", self._seconds)
        moment = self._began + self._seconds
        for key, value in metrics.items():
            if isinstance(value, str):
                self._writer.add_text(key, _verbatim(value), step, moment)
            elif value is not None and key not in NO_CURVES:
                self._writer.add_scalar(_tag(key), value, step, moment)

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()


def _forget(events: Path) -> None:
    """Empty a file, or delete it if that was done before.

    A TensorBoard that looks on walks past an empty file, but waits at a deleted one forever.
    """
    if events.stat().st_size == 0:
        events.unlink()
    else:
        events.write_bytes(b"")


def _tag(key: str) -> str:
    """`valid_loss` as `valid/loss`, `loss` as `train/loss`: TensorBoard groups by the first word.

    So the loss in training and on held-out text are drawn next to each other.
    """
    if key in SPEED:
        return f"speed/{key}"
    group, _, name = key.partition("_")
    return f"valid/{name}" if group == "valid" else f"train/{key}"


def _verbatim(text: str) -> str:
    """Markdown that shows a text as it is."""
    return "\n".join("    " + line for line in text.splitlines())
