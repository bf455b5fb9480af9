"""Runs of two processes beside those of one: two real processes, started by torchrun, once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from retnet.hub import dump_toml
from retnet.train import load_config, read_metrics, run, train

SCRIPT = Path(__file__).with_name("together.py")

JOBS: dict[str, dict[str, Any]] = {
    "full": {},
    "copies": {"train.shard": "none", "train.accumulate": 2},
    "recomputed": {"train.gradient_checkpointing": True},
    "carried": {"train.carry_state": True},
    "spread": {"train.sequence_ranks": 2},
    "spread-carried": {"train.sequence_ranks": 2, "train.carry_state": True},
    "bf16": {"train.precision": "bfloat16"},
    "two-then-one": {},
    "one-then-two": {},
    "interrupted": {},
    "refused": {"train.seq_len": 16},
    "uneven": {"train.batch_size": 3},
}
STOP = {"two-then-one": 6, "interrupted": 5, "spread-carried": 5}
"""The step after the batch of 5 is validated: that is what a run goes on with, which is harder."""
GO_ON = ("interrupted", "spread-carried")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, make_config_in: Any) -> SimpleNamespace:
    base = tmp_path_factory.mktemp("together")
    config = make_config_in(base)(steps=8, keep=1, save_every=5, eval_tokens=200)
    (base / "run.toml").write_text(dump_toml(config), encoding="utf-8")

    def alone(name: str, **settings: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "plot_metrics", lambda *_: None)
            return train(load_config(base / "run.toml", {"run.dir": name, **settings}), base=base)

    alone("one-then-two", **{"train.steps": 4, "train.schedule": "constant"})
    alone("refused", **{"train.steps": 4})
    jobs = [{"dir": name, "settings": settings} for name, settings in JOBS.items()]
    for job in jobs:
        if job["dir"] in STOP:
            job["stop_at"] = STOP[job["dir"]]
        if job["dir"] == "one-then-two":
            job["settings"] = {"train.schedule": "constant"}
    jobs += [{"dir": name, "settings": JOBS[name]} for name in GO_ON]  # the same command again
    (base / "jobs.json").write_text(json.dumps(jobs))
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(SCRIPT), str(base)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for name, settings in (
        ("one", {}),
        ("one-constant", {"train.schedule": "constant"}),
        ("one-carried", JOBS["carried"]),
        ("one-bf16", JOBS["bf16"]),
        ("two-then-one", {}),
    ):
        alone(name, **settings)
    return SimpleNamespace(base=base, out=done.stdout, err=done.stderr)


def losses(folder: Path) -> list[float]:
    return [
        line[key]
        for line in read_metrics(folder / "metrics.jsonl")
        for key in ("loss", "grad_norm", "valid_loss", "valid_loss_carried")
        if key in line
    ]


def outcome(runs: SimpleNamespace, name: str) -> list[str]:
    return [(runs.base / f"{name}.rank-{rank}").read_text() for rank in (0, 1)]


@pytest.mark.parametrize(
    ("two", "one", "tolerance"),
    [
        ("full", "one", 1e-5),
        ("copies", "one", 1e-5),
        ("recomputed", "one", 1e-5),
        ("carried", "one-carried", 1e-5),
        ("spread", "one", 1e-5),
        ("spread-carried", "one-carried", 1e-5),
        ("bf16", "one-bf16", 2e-2),
        ("one-then-two", "one-constant", 1e-5),
        ("two-then-one", "one", 1e-5),
    ],
)
def test_two_processes_have_the_losses_of_one(
    runs: SimpleNamespace, two: str, one: str, tolerance: float
) -> None:
    got, want = losses(runs.base / two), losses(runs.base / one)
    assert len(got) == len(want) > 6
    assert got == pytest.approx(want, rel=tolerance)


def test_both_processes_tell_of_the_same_step(runs: SimpleNamespace) -> None:
    assert outcome(runs, "full") == ["step 8", "step 8"]


def test_a_signal_to_one_process_stops_all_and_they_go_on_bit_for_bit(
    runs: SimpleNamespace,
) -> None:
    assert outcome(runs, "interrupted") == ["step 8", "step 8"]
    assert "stopped after step 6" in runs.out
    assert losses(runs.base / "interrupted") == losses(runs.base / "full")
    ours, theirs = (
        (runs.base / name / "model.safetensors").read_bytes() for name in ("interrupted", "full")
    )
    assert ours == theirs


def test_each_process_writes_its_part_of_what_only_resuming_needs(runs: SimpleNamespace) -> None:
    files = sorted((runs.base / "full/trainer/step-8/state").iterdir())
    assert len(files) == 2
    shares = [sum(t.numel() for t in load_file(file).values()) for file in files]
    assert max(shares) < 0.7 * sum(shares)


def test_what_the_first_process_refuses_ends_the_others_silently(runs: SimpleNamespace) -> None:
    first, second = outcome(runs, "refused")
    assert first.startswith("ValueError: train.seq_len (16) must stay 24")
    assert second == "SystemExit: 1"


def test_rows_that_cannot_be_shared_are_refused(runs: SimpleNamespace) -> None:
    first, second = outcome(runs, "uneven")
    assert first.startswith(
        "ValueError: train.batch_size (3) must be a multiple of train.accumulate (1) times the "
        "processes that share its rows (2); change"
    )
    assert second == "SystemExit: 1"


def test_only_the_first_process_speaks(runs: SimpleNamespace) -> None:
    # Each run that was not refused, and two of them in two goes.
    assert runs.out.count("parameters,") == len(JOBS) - 2 + len(GO_ON)
