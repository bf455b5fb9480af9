"""The same tasks through the harness's own wrapper for `transformers`: equal, and how fast."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from lm_eval.models.huggingface import HFLM

import retnet.hf  # noqa: F401 - it tells transformers of our folders
from retnet.data import Tokenizer
from retnet.evaluate.tasks import TaskScore, score_tasks
from retnet.hub import save_checkpoint
from retnet.model import Decoder

BATCH = 16
"""Requests at a time of the wrapper, which pads them to the longest."""


class Beside(NamedTuple):
    """What the wrapper found.

    Attributes:
        scores: in the order of ours.
        seconds: that its log-likelihoods took.
    """

    scores: list[TaskScore]
    seconds: float


def score_beside(
    model: Decoder,
    tokenizer: Tokenizer,
    files: dict[str, Path],
    *,
    shots: int = 0,
    limit: int | None = None,
) -> Beside:
    """Ask the items of tasks as `score_tasks` does, through `HFLM` and `retnet.hf`.

    Args:
        model: written to a folder, from which transformers loads it.
        tokenizer: the model's.
        files: name of each task and its file.
        shots: examples in front of each item.
        limit: items of each task; None: all.
    """
    with TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), model, tokenizer)
        wrapper: Any = _Timed  # its decorator hides what it takes
        lm = wrapper(pretrained=folder, batch_size=BATCH, device=_device(model), dtype="float32")
        scores = score_tasks(lm, files, shots=shots, limit=limit)
    return Beside(scores, lm.seconds)


class _Timed(HFLM):
    seconds = 0.0

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> Any:  # noqa: ARG002
        begin = time.perf_counter()
        theirs: Any = super().loglikelihood  # its decorator hides what it takes
        found = theirs(requests, disable_tqdm=True)
        self.seconds += time.perf_counter() - begin
        return found


def _device(model: Decoder) -> str:
    return str(next(model.parameters()).device)
