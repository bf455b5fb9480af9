"""Kill a training run with SIGKILL at random moments, restart it, and compare it with one never
interrupted: losses and weights must be equal bit for bit.
"""

import json
import random
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from retnet.bench.cases import KILLS, QUICK_KILLS, KillsCase
from retnet.bench.record import Gate, GateFailed
from retnet.bench.session import Session
from retnet.bench.timing import Spread
from retnet.train import read_metrics

BENCH = "kills"
CLOCK = ("seconds", "tokens_per_s", "mfu")
"""Fields of metrics.jsonl that a clock decides."""

POLL_SECONDS = 0.001

CONFIG = """
[data]
train = [{files}]
tokenizer = {{ kind = "bytes" }}

[model]
d_model = 64
dropout = 0.1
tie_embeddings = true
[[model.layers]]
repeat = 2
mixer = {{ name = "retention", num_heads = 2 }}
channel = {{ name = "glu", width = 128 }}

[train]
steps = {steps}
batch_size = 4
seq_len = {seq_len}
log_every = 7
eval_every = {eval_every}
eval_tokens = 4000
save_every = {save_every}
sample_every = {eval_every}
sample_tokens = 16
"""


class Kill(NamedTuple):
    """One SIGKILL.

    Attributes:
        moment: what it hit: `starting`, `training` or `saving`, a checkpoint half-written.
        step: of the newest checkpoint left behind.
    """

    moment: str
    step: int


def bench_kills(session: Session) -> None:
    """Record how many kills a run has survived, and how long that took."""
    case = QUICK_KILLS if session.quick else KILLS
    session.plan(case.kills + 2)
    session.begin("the run that is never interrupted")
    with tempfile.TemporaryDirectory(prefix="retnet-kills-") as name:
        base = Path(name)
        begin = perf_counter()
        whole, killed = base / "whole/run", base / "killed/run"
        _finish(_train(whole, case), whole)
        whole_s = perf_counter() - begin
        kills = kill_again_and_again(killed, case, session.begin)
        session.begin("the rest of the run")
        _finish(_train(killed, case), killed)
        seconds = perf_counter() - begin - whole_s
        different = difference(whole, killed)
    moments = Counter(kill.moment for kill in kills)
    gate = Gate(
        not different and len(kills) == case.kills,
        different or f"{len(kills)} of {case.kills} kills before the run was complete",
    )
    fields = {"steps": case.steps, "save_every": case.save_every, "kills": case.kills}
    metrics = {
        **{f"kills_{moment}": float(count) for moment, count in moments.items()},
        "different_bits": 0.0,
        "whole_s": whole_s,
        "killed_s": seconds,
    }
    try:
        session.recorder.add(
            BENCH, fields, {name: Spread.of([value]) for name, value in metrics.items()}, gate
        )
    except GateFailed as error:
        session.fail("kills", error)
    session.end()


def kill_again_and_again(run: Path, case: KillsCase, tell: Callable[[str], None]) -> list[Kill]:
    """Start the run and kill it, as often as the case says or until it is complete.

    The kills are aimed, at random, at the start of the process, at any moment of the training and
    at a checkpoint that is being written; what they hit is seen from what they leave behind.
    """
    draw = random.Random(case.seed)
    trainer, log = run / "trainer", run / "metrics.jsonl"
    starts = 5.0  # seconds; corrected by what is seen
    kills: list[Kill] = []
    while len(kills) < case.kills:
        tell(f"kill {len(kills) + 1}")
        moment = draw.choice(("starting", "training", "training", "saving", "saving"))
        begin, logged = perf_counter(), _changed(log)
        saving = _Saving(trainer)
        process = _train(run, case)
        if moment == "starting":
            sleep(draw.uniform(0, starts))
        else:
            _wait(process, lambda logged=logged: _changed(log) != logged)
            starts = perf_counter() - begin
        if moment == "training":
            sleep(draw.uniform(0, 1.5))
        elif moment == "saving":
            for _ in range(draw.randint(1, 3)):
                _wait(process, lambda saving=saving: not saving.now())
                _wait(process, saving.now)
            sleep(draw.uniform(0, 0.03))
        if process.poll() is not None:
            _finish(process, run)
            break  # complete before it could be killed
        process.kill()
        process.wait()
        if saving.now():
            moment = "saving"
        elif _changed(log) == logged:
            moment = "starting"
        else:
            moment = "training"
        saved = [int(path.name[5:]) for path in trainer.glob("step-*")]
        kills.append(Kill(moment, max(saved, default=0)))
    return kills


class _Saving:
    """Whether a process writes a checkpoint; what one before it left half-written is no sign."""

    def __init__(self, trainer: Path) -> None:
        self._folder = trainer / ".saving"
        self._before = self._made()

    def now(self) -> bool:
        """Whether it does at this moment."""
        return self._made() not in (None, self._before)

    def _made(self) -> tuple[int, int] | None:
        try:
            found = self._folder.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_ctime_ns


def difference(whole: Path, killed: Path) -> str:
    """Where two runs differ in logs, weights or what resuming needs; empty if nowhere."""
    ours, theirs = (
        [
            {k: v for k, v in line.items() if k not in CLOCK}
            for line in read_metrics(folder / "metrics.jsonl")
        ]
        for folder in (whole, killed)
    )
    for mine, other in zip(ours, theirs, strict=False):
        if mine != other:
            return f"metrics.jsonl has {json.dumps(other)} for {json.dumps(mine)}"
    if len(ours) != len(theirs):
        return f"metrics.jsonl has {len(theirs)} lines for {len(ours)}"
    for name in ("model", "state"):
        tensors, others = (_tensors(folder, name) for folder in (whole, killed))
        if tensors.keys() != others.keys():
            return f"{name}: other tensors"
        for key, tensor in tensors.items():
            if not torch.equal(tensor, others[key]):
                return f"{name}: {key} differs"
    return ""


def _tensors(run: Path, name: str) -> dict[str, torch.Tensor]:
    """What the newest checkpoint of a run holds."""
    steps = {int(path.name[5:]): path for path in run.glob("trainer/step-*")}
    files = sorted((steps[max(steps)] / name).glob("*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def _train(run: Path, case: KillsCase) -> subprocess.Popen[str]:
    """Begin or go on with the run, in a process of its own, as a user would."""
    run.parent.mkdir(parents=True, exist_ok=True)
    toml, said = run.with_name("run.toml"), run.with_name("said.txt")
    toml.write_text(
        CONFIG.format(
            files=json.dumps(str(Path(sysconfig.get_path("stdlib")) / case.files)),
            steps=case.steps,
            seq_len=case.seq_len,
            save_every=case.save_every,
            eval_every=5 * case.save_every,
        ),
        encoding="utf-8",
    )
    with said.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "retnet", "train", str(toml), "--run.dir", str(run)],
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )


def _finish(process: subprocess.Popen[str], run: Path) -> None:
    if process.wait() != 0:
        said = run.with_name("said.txt").read_text(encoding="utf-8")
        raise ValueError(f"training ended with status {process.returncode}; it said:\n{said}")


def _wait(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """Return when something has happened, or the process has ended."""
    while not happened() and process.poll() is None:
        sleep(POLL_SECONDS)


def _changed(path: Path) -> int:
    """When a file was last written; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
