"""`train`: begin a run, or go on with it, in its folder."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from retnet.data import Corpus, prepare, windows_per_epoch
from retnet.hub import dump_toml, from_dict, load_toml, write_atomic
from retnet.train.config import RunConfig, fit_vocabulary
from retnet.train.display import Display
from retnet.train.folder import RunFolder
from retnet.train.loop import RUN, Loop, Progress
from retnet.train.memory import keep_freed_memory
from retnet.train.metrics import Metrics, read_metrics
from retnet.train.plot import plot_metrics
from retnet.train.ranks import Ranks, joined
from retnet.train.resume import corpus_fingerprint, refuse_changes, refuse_other_text
from retnet.train.sinks import find_sinks

PLOT = "loss.png"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What became of a run.

    Attributes:
        folder: the checkpoint folder.
        step: updates done.
        finished: False if it was asked to stop before the last step.
        metrics: the last value of each of the log's fields.
    """

    folder: Path
    step: int
    finished: bool
    metrics: Metrics


@dataclass(frozen=True, kw_only=True)
class _Start:
    """Where a run stands before this call takes it further.

    Attributes:
        config: with the vocabulary filled in.
        progress: of the step that is saved.
        tokens: folder of the corpus; None if nothing is left to do.
    """

    config: RunConfig
    progress: Progress
    tokens: Path | None


def train(
    config: RunConfig,
    *,
    base: str | Path | None = None,
    console: Console | None = None,
    picture: bool = True,
) -> TrainResult:
    """Train a model, or go on with a run that was interrupted, as if it had not been.

    Under `torchrun` the processes share the run; the first of them talks and logs. Tokens are kept
    beside the run's folder, in `.tokens`, for all runs there. SIGINT and SIGTERM save and return.
    torch's own random numbers are left as they were.

    Args:
        config: the run.
        base: where its relative paths start; None is the current folder.
        console: where to show progress; None is standard output.
        picture: whether to draw the log at the end; for many short runs that takes most time.

    Raises:
        ValueError: text, vocabulary and model do not fit together, the folder belongs to a run
            with other settings or is damaged, training diverged, or the disk is full.
        SystemExit: in the other processes, when one of these ended the first.
    """
    keep_freed_memory()
    find_sinks(config.train.log_to)  # what is missing is said before anything slow
    base = Path.cwd() if base is None else Path(base)
    folder = RunFolder(base / config.run.dir)
    with joined(config.train.sequence_ranks) as ranks, ExitStack() as stack:
        display = Display(console) if ranks.first else Display.silent()

        def prepare_run() -> _Start:
            _check_shares(config, ranks)
            try:
                stack.enter_context(folder.locked())
                return _start(config, base, folder, display)
            except OSError as error:
                raise ValueError(
                    f"run.dir ({folder.path}) cannot be written ({error}); make room, or name a "
                    "folder that you may write to"
                ) from error

        start = ranks.on_first(prepare_run)
        if start.tokens is None:
            return _result(folder, start.progress.step, finished=True)
        config, progress = start.config, start.progress
        corpus = Corpus.open(start.tokens)
        passes = _passes(config, corpus)
        with torch.random.fork_rng(devices=[ranks.device] if ranks.device.type == "cuda" else []):
            loop = Loop(config, corpus, folder, display, ranks, progress, base)
            millions = loop.num_parameters / 1e6
            where = ranks.device.type + (f" in {ranks.size} processes" if ranks.size > 1 else "")
            display.note(
                f"{millions:.2f} M parameters, {corpus.train.num_tokens:,} tokens of text, "
                f"{passes:.2f} passes over it, on {where} in {config.train.precision}"
            )
            finished = loop.run()
        if ranks.first and picture:
            name = f"{folder.path.name}: {millions:.2f} M parameters, step {progress.step}"
            _draw(folder, display, name)
        display.note(
            f"saved in {folder.path}"
            if finished
            else f"stopped after step {progress.step} and saved in {folder.path}; the same command "
            "goes on from there"
        )
        ranks.barrier()  # torchrun ends all when one leaves with the status of a stopped run
        return _result(folder, progress.step, finished)


def _check_shares(config: RunConfig, ranks: Ranks) -> None:
    train = config.train
    if train.batch_size % (ranks.data_size * train.accumulate):
        raise ValueError(
            f"train.batch_size ({train.batch_size}) must be a multiple of train.accumulate "
            f"({train.accumulate}) times the processes that share its rows ({ranks.data_size}); "
            "change one of them"
        )
    if train.sequence_ranks > 1 and config.model.drop_path:
        raise ValueError(
            f"model.drop_path ({config.model.drop_path}) must be 0 with train.sequence_ranks "
            f"({train.sequence_ranks}): the processes of a row would drop different layers of it; "
            "change one of them"
        )


def _start(config: RunConfig, base: Path, folder: RunFolder, display: Display) -> _Start:
    """Read the text, and check that the run may begin or go on."""
    saved, troubles = folder.latest_sound()
    for trouble in troubles:
        display.note(f"{trouble}; it is put aside, and the step before it serves")
    progress, old = Progress(corpus="", unlogged=[]), config
    if saved is not None:
        progress = _progress(saved.progress)
        old = from_dict(RunConfig, load_toml(saved.path / RUN))
        refuse_changes(old, config)
        folder.publish(saved.path)  # a kill may have come in between
        if _is_complete(folder, progress.step, config):
            display.note(
                f"{folder.path} is complete with {progress.step} steps; raise train.steps "
                f"({config.train.steps}) to go on"
            )
            return _Start(config=config, progress=progress, tokens=None)
    with display.preparing() as report:
        corpus = prepare(config.data, folder.path.parent / ".tokens", base=base, progress=report)
    config = fit_vocabulary(config, corpus.tokenizer)
    _passes(config, corpus)  # checks the lengths
    fingerprint = corpus_fingerprint(corpus)
    if saved is not None:
        refuse_other_text(old, config, progress.corpus, fingerprint)
        display.note(f"going on from step {progress.step} in {folder.path}")
    progress.corpus = fingerprint
    text = dump_toml(config)
    write_atomic(folder.path / RUN, lambda path: path.write_text(text, encoding="utf-8"))
    return _Start(config=config, progress=progress, tokens=corpus.folder)


def _progress(read: dict[str, Any]) -> Progress:
    return Progress(
        corpus=read["corpus"],
        step=read["step"],
        seconds=read["seconds"],
        unlogged=[(loss, norm) for loss, norm in read["unlogged"]],
    )


def _is_complete(folder: RunFolder, step: int, config: RunConfig) -> bool:
    """Whether the last step is saved and its report, which ends with a validation, is written."""
    if step != config.train.steps:
        return step > config.train.steps
    lines = read_metrics(folder.path / "metrics.jsonl")
    return any(line["step"] == step and "valid_loss" in line for line in lines)


def _passes(config: RunConfig, corpus: Corpus) -> float:
    windows = config.train.steps * config.train.batch_size
    return windows / windows_per_epoch(corpus.train, config.train.seq_len)


def _result(folder: RunFolder, step: int, finished: bool) -> TrainResult:
    metrics: Metrics = {}
    for line in read_metrics(folder.path / "metrics.jsonl"):
        metrics |= line
    return TrainResult(folder=folder.path, step=step, finished=finished, metrics=metrics)


def _draw(folder: RunFolder, display: Display, title: str) -> None:
    try:
        plot_metrics(read_metrics(folder.path / "metrics.jsonl"), folder.path / PLOT, title)
    except ModuleNotFoundError:
        display.note("no loss plot: matplotlib is missing; pip install 'retnet[plot]' brings it")
    except OSError as error:
        display.note(f"no loss plot: {folder.path / PLOT} cannot be written ({error})")
