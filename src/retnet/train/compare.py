"""Runs side by side: what each reached, and in what their settings differ."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from retnet.hub import load_toml
from retnet.train.metrics import Metrics, read_metrics
from retnet.train.plot import CARRIED, curve
from retnet.train.resume import flat

DEPTH = 2
"""Folders below the given one in which runs are looked for."""

LEFT_OUT = {
    "run.dir",
    "train.steps",
    "train.log_every",
    "train.log_to",
    "train.eval_every",
    "train.save_every",
    "train.keep",
    "train.sample_every",
    "train.sample_prompt",
    "train.sample_tokens",
}
"""Settings that a summary shows in any case, or that only say how a run is watched."""

UNSET = "not set"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What became of a run so far; None where its log does not say.

    Attributes:
        name: its path below the folder that was searched.
        path: its folder.
        parameters: numbers in `model.safetensors`.
        tokens: learned from.
        step: updates done, as far as logged.
        steps: updates of the whole run.
        loss: the last logged in training, nats per token.
        bits_per_byte: of held-out text, the last, with the state carried through.
        tokens_per_s: median of those logged.
        mfu: share of the machine's peak, likewise.
        finished: the last step is done and validated.
        updated: when its log was last written to, seconds since 1970.
        settings: all of `run.toml`, by dotted name.
        metrics: all of the log.
    """

    name: str
    path: Path
    parameters: int | None
    tokens: int
    step: int
    steps: int
    loss: float | None
    bits_per_byte: float | None
    tokens_per_s: float | None
    mfu: float | None
    finished: bool
    updated: float
    settings: dict[str, Any] = field(repr=False)
    metrics: list[Metrics] = field(repr=False)


def find_runs(folder: Path) -> list[Path]:
    """Folders with a `run.toml` and a `metrics.jsonl`: this one, and those up to two below it.

    Raises:
        ValueError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the one that holds your runs")
    pattern, found = "", []
    for _ in range(DEPTH + 1):
        logs = folder.glob(f"{pattern}metrics.jsonl")
        found += [log.parent for log in logs if (log.parent / "run.toml").exists()]
        pattern += "*/"
    if not found:
        raise ValueError(
            f"{folder} holds no run: no folder with a run.toml and a metrics.jsonl, as "
            "`retnet train` writes them; give the folder above your runs"
        )
    return sorted(found)


def read_run(path: Path, name: str) -> RunSummary:
    """Summarise a run.

    Args:
        path: its folder.
        name: what to call it.

    Raises:
        ValueError: a file of it is damaged.
    """
    settings, metrics = flat(load_toml(path / "run.toml")), read_metrics(path / "metrics.jsonl")
    steps = settings.get("train.steps")
    if not isinstance(steps, int):
        raise ValueError(f"{path / 'run.toml'} has no train.steps; a run cannot do without it")
    last: Metrics = {"step": 0, "tokens": 0}
    for line in metrics:
        last |= {key: value for key, value in line.items() if value is not None}
    return RunSummary(
        name=name,
        path=path,
        parameters=_num_parameters(path / "model.safetensors"),
        tokens=last["tokens"],
        step=last["step"],
        steps=steps,
        loss=last.get("loss"),
        bits_per_byte=last.get(CARRIED),
        tokens_per_s=_median(metrics, "tokens_per_s"),
        mfu=_median(metrics, "mfu"),
        # As a run itself knows: the report of its last step ends with a validation.
        finished=any(line["step"] >= steps and "valid_loss" in line for line in metrics),
        updated=(path / "metrics.jsonl").stat().st_mtime,
        settings=settings,
        metrics=metrics,
    )


def rank_runs(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The best first: by held-out bits per byte, then by training loss; unknown ones last."""

    def key(run: RunSummary) -> tuple[float, float, str]:
        return _or_inf(run.bits_per_byte), _or_inf(run.loss), run.name

    return sorted(runs, key=key)


def differences(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """Of each run the settings that are not the same in all, by the shortest name that is clear.

    Those that only say how a run is watched are left out.
    """
    keys = [
        key for key in dict.fromkeys(k for r in runs for k in r.settings) if key not in LEFT_OUT
    ]
    differ = [key for key in keys if len({_text(r.settings.get(key)) for r in runs}) > 1]
    ends = [key.rpartition(".")[2] for key in differ]
    shown = [end if ends.count(end) == 1 else key for key, end in zip(differ, ends, strict=True)]
    return [
        {name: run.settings.get(key, UNSET) for key, name in zip(differ, shown, strict=True)}
        for run in runs
    ]


def _median(metrics: Sequence[Metrics], key: str) -> float | None:
    _, values = curve(metrics, key)
    return statistics.median(values) if values else None


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value


def _num_parameters(path: Path) -> int | None:
    """From the head of the file, a tied weight counted once; None before the first save."""
    try:
        with safe_open(path, framework="np") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
