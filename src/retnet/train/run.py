"""`train`: begin a run, or go on with it, in its folder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from retnet.data import Corpus, prepare, windows_per_epoch
from retnet.hub import dump_toml, from_dict, load_toml, write_atomic
from retnet.train.config import RunConfig, fit_vocabulary
from retnet.train.display import Display
from retnet.train.folder import RunFolder, read_progress
from retnet.train.loop import RUN, Loop, Progress
from retnet.train.memory import keep_freed_memory
from retnet.train.metrics import Metrics, read_metrics
from retnet.train.plot import plot_metrics
from retnet.train.resume import corpus_fingerprint, refuse_changes, refuse_other_text

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


def train(
    config: RunConfig, *, base: str | Path | None = None, console: Console | None = None
) -> TrainResult:
    """Train a model, or go on with a run that was interrupted, as if it had not been.

    Tokens are kept beside the run's folder, in `.tokens`, for all runs there. SIGINT and SIGTERM
    save and return. torch's own random numbers are left as they were.

    Args:
        config: the run.
        base: where its relative paths start; None is the current folder.
        console: where to show progress; None is standard output.

    Raises:
        ValueError: text, vocabulary and model do not fit together, the folder belongs to a run
            with other settings or is damaged, training diverged, or the disk is full.
    """
    keep_freed_memory()
    base = Path.cwd() if base is None else Path(base)
    display = Display(console)
    folder = RunFolder(base / config.run.dir)
    with folder.locked():
        saved = folder.latest()
        progress, old = Progress(corpus="", unlogged=[]), config
        if saved is not None:
            progress = _progress(saved)
            old = from_dict(RunConfig, load_toml(saved / RUN))
            refuse_changes(old, config)
            if _is_complete(folder, progress.step, config):
                display.note(
                    f"{folder.path} is complete with {progress.step} steps; raise train.steps "
                    f"({config.train.steps}) to go on"
                )
                return _result(folder, progress.step, finished=True)
        with display.preparing() as report:
            corpus = prepare(
                config.data, folder.path.parent / ".tokens", base=base, progress=report
            )
        config = fit_vocabulary(config, corpus.tokenizer)
        passes = _passes(config, corpus)
        fingerprint = corpus_fingerprint(corpus)
        if saved is not None:
            refuse_other_text(old, config, progress.corpus, fingerprint)
            display.note(f"going on from step {progress.step} in {folder.path}")
        progress.corpus = fingerprint
        corpus.tokenizer.save(folder.path)
        text = dump_toml(config)
        write_atomic(folder.path / RUN, lambda path: path.write_text(text, encoding="utf-8"))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            loop = Loop(config, corpus, folder, display, device, progress)
            millions = loop.model.num_parameters() / 1e6
            display.note(
                f"{millions:.2f} M parameters, {corpus.train.num_tokens:,} tokens of text, "
                f"{passes:.2f} passes over it, on {device} in {config.train.precision}"
            )
            finished = loop.run()
        name = f"{folder.path.name}: {millions:.2f} M parameters, step {progress.step}"
        _draw(folder, display, name)
        display.note(
            f"saved in {folder.path}"
            if finished
            else f"stopped after step {progress.step} and saved in {folder.path}; the same command "
            "goes on from there"
        )
        return _result(folder, progress.step, finished)


def _progress(saved: Path) -> Progress:
    read = read_progress(saved)
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
