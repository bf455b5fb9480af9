"""The training loop: step, save, report, again."""

import hashlib
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retnet.data import Batch, Corpus
from retnet.hub import dump_toml
from retnet.model import Decoder, DecoderState
from retnet.model.scoring import score
from retnet.model.state import detach_state
from retnet.ops import SequenceRanks
from retnet.train.config import RunConfig
from retnet.train.display import Display, Pace, RunningMean
from retnet.train.feed import Feed
from retnet.train.flops import training_flops_per_token
from retnet.train.folder import MODEL, RunFolder
from retnet.train.metrics import Metrics, MetricsLog
from retnet.train.optimizer import build_optimizer, optimizer_tensors
from retnet.train.peak import measured_peak
from retnet.train.ranks import Ranks
from retnet.train.saving import STATE, Saver, read_tensors
from retnet.train.schedule import learning_rate
from retnet.train.sharding import shard_model, whole
from retnet.train.signals import StopRequest, StopRequested
from retnet.train.sinks import find_sinks
from retnet.train.tune import (
    learned_parameters,
    refuse_other_base,
    save_learned,
    starting_model,
)
from retnet.train.validation import Validation

RUN = "run.toml"

Autocast = Callable[[], AbstractContextManager[Any]]


class Diverged(ValueError):
    """A loss or a gradient is no number any more."""


@dataclass(kw_only=True)
class Progress:
    """What a run knows besides weights and optimizer; saved with each step.

    Attributes:
        corpus: fingerprint of the text.
        step: updates done.
        seconds: spent in steps.
        unlogged: loss and gradient norm of the steps that the next line of the log is about; of
            those that the last one was about, if no step came after it.
    """

    corpus: str
    step: int = 0
    seconds: float = 0.0
    unlogged: list[tuple[float, float]]


class Loop:
    """A run on its way.

    After every update, in this order: the step is saved if it is time to, then reported: logged,
    sampled from, validated. A checkpoint is therefore the state right after an update, and a run
    that goes on from it begins with the report of that very step, whether or not it was made
    before. All that is random in a step is drawn from (seed, step), so neither reports nor
    interruptions change what comes after.
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        folder: RunFolder,
        display: Display,
        ranks: Ranks,
        progress: Progress,
        root: Path,
    ) -> None:
        self.config = config
        self.progress = progress
        self._corpus = corpus
        self._display = display
        self._ranks = ranks
        self._autocast = partial(
            torch.autocast,
            ranks.device.type,
            dtype=torch.bfloat16,
            enabled=config.train.precision == "bfloat16",
        )
        torch.manual_seed(derived_seed(config.run.seed, "weights"))
        model, self._adapter = starting_model(
            config.tune, config.model, root=root, folder=folder.path
        )
        self.model = model.to(ranks.device)
        self.model.gradient_checkpointing = config.train.gradient_checkpointing
        self.num_parameters = self.model.num_parameters()
        self._flops_per_token = training_flops_per_token(self.model, config.train.seq_len)
        # Before sharding: reading nothing with a sharded model would leave its weights gathered,
        # and those of a checkpoint, which come next, unseen.
        self._feed = Feed(corpus.train, config, ranks, self.model)
        shard_model(self.model, ranks, config.train.shard)
        # Kept: between forward and backward a sharded model shows other tensors in their place.
        self._parameters = learned_parameters(self.model)
        self._optimizer = build_optimizer(self.model, config.train)
        self._folder = folder
        self._saver = Saver(folder, ranks, self._write_step, config.train.keep)
        self._saved_step = 0
        if progress.step:
            self._restore(folder.trainer / f"step-{progress.step}")
        self._validation = Validation(config, corpus, ranks, self._autocast)
        self._log: MetricsLog | None = None
        ranks.on_first(self._open_log)
        self._unread: list[Tensor] = []
        self._losses = RunningMean()
        self._logged = (progress.step, 0.0)

    def run(self) -> bool:
        """Train to the last step; False if a signal asked to stop before."""
        progress, train, ranks = self.progress, self.config.train, self._ranks
        # On every rank: processes that share a machine must measure at the same time.
        dtype = torch.bfloat16 if train.precision == "bfloat16" else torch.float32
        peak = ranks.size * measured_peak(ranks.device, dtype)
        self._pace = Pace(train.tokens_per_step, peak_tokens_per_s=peak / self._flops_per_token)
        with ExitStack() as stack:
            if self._log is not None:
                stack.callback(self._log.close)
            # Around the saver's end: when one process fails, torchrun ends the others by SIGTERM,
            # and the first of them may have to finish a checkpoint and say what is wrong.
            stop = stack.enter_context(StopRequest(speaks=ranks.first))
            stack.callback(self._saver.close)
            stack.enter_context(self._display.training(progress.step, train.steps))
            try:
                if progress.step:
                    self._report(stop)
                while progress.step < train.steps:
                    self._step()
                    stopping = ranks.any(stop.name is not None or self._saver.failed)
                    if self._due(train.save_every) or stopping:
                        self._save()
                    if stopping:
                        raise StopRequested
                    self._report(stop)
                self._saver.wait()
            except StopRequested:
                self._save()
                self._saver.wait()
                return False
        return True

    def _step(self) -> None:
        config, progress, ranks = self.config, self.progress, self._ranks
        # Not when they were logged: a checkpoint of that step must still be able to tell them.
        if self._is_logged():
            progress.unlogged.clear()
        self._pace.begin_step()
        purpose = f"step {progress.step}" + (f" rank {ranks.rank}" if ranks.rank else "")
        torch.manual_seed(derived_seed(config.run.seed, purpose))
        rate = learning_rate(config.train, progress.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        loss, states = accumulate_gradients(
            self.model,
            self._feed.parts(progress.step),
            config.train.tokens_per_step,
            self._autocast,
            processes=ranks.size,
            row=ranks.row,
        )
        self._feed.carry(states)
        norm = whole(
            torch.nn.utils.clip_grad_norm_(
                self._parameters.values(), config.train.clip_norm or math.inf
            )
        )
        self._unread.append(torch.stack([ranks.sum(loss), norm]))
        progress.step += 1
        if ranks.device.type == "cpu":
            self._read_losses()  # before the update: the weights stay sound
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._pace.end_step()
        self._display.step(progress.step, self._losses.value, self._pace)

    def _due(self, every: int) -> bool:
        step, steps = self.progress.step, self.config.train.steps
        return step == steps or (every > 0 and step % every == 0)

    def _is_logged(self) -> bool:
        """Whether the last step's report has a line about training."""
        return self._due(self.config.train.log_every) or self.progress.step == 1

    def _read_losses(self) -> None:
        """Fetch losses from the device, which waits for it; stop if one is no number."""
        if not self._unread:
            return
        first = self.progress.step - len(self._unread) + 1
        values = torch.stack(self._unread).tolist()
        self._unread.clear()
        for step, (loss, norm) in enumerate(values, first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self._diverged(f"loss ({loss}) and gradient norm ({norm})", step)
            self.progress.unlogged.append((loss, norm))
            self._losses.add(loss)

    def _diverged(self, what: str, step: int) -> BaseException:
        saved = self._saved_step
        kept = f"the checkpoint of step {saved} is kept" if saved else "there is no checkpoint yet"
        return self._ranks.failure(
            f"{what} of step {step} must be finite numbers: training diverged; {kept}. Start a new "
            f"run in another run.dir with a lower train.learning_rate "
            f"({self.config.train.learning_rate}), more train.warmup_steps "
            f"({self.config.train.warmup_steps}) or a train.clip_norm "
            f"({self.config.train.clip_norm}) between 0 and 1",
            Diverged,
        )

    def _report(self, stop: StopRequest) -> None:
        train, step = self.config.train, self.progress.step
        if self._is_logged():
            self._write(self._training_metrics())
        if train.sample_tokens and self._due(train.sample_every):
            text = self._validation.sample(self.model)
            self._display.sample(step, text)
            self._write({"sample": text})
        if self._due(train.eval_every):
            self._read_losses()
            # One process alone may stop in the middle; of several, none may leave the others.
            values = self._validation.score(
                self.model, stop.stoppable if self._ranks.size == 1 else iter
            )
            if not all(map(math.isfinite, values.values())):
                raise self._diverged(f"validation losses ({values})", step)
            self._display.validation(step, values)
            self._write(values)

    def _training_metrics(self) -> Metrics:
        """Means over the steps since the last line of the log."""
        self._read_losses()
        progress, (logged_step, logged_seconds) = self.progress, self._logged
        seconds = self._pace.training_seconds - logged_seconds
        tokens = (progress.step - logged_step) * self.config.train.tokens_per_step
        self._logged = (progress.step, self._pace.training_seconds)
        losses, norms = zip(*progress.unlogged, strict=True)
        speed = tokens / seconds if tokens else None
        share = None if speed is None else self._pace.share_of_peak(speed)
        return {
            "loss": math.fsum(losses) / len(losses),
            "grad_norm": math.fsum(norms) / len(norms),
            "learning_rate": learning_rate(self.config.train, progress.step - 1),
            "tokens_per_s": None if speed is None else round(speed, 1),
            "mfu": None if share is None else round(share, 4),
            "seconds": round(progress.seconds + self._pace.training_seconds, 3),
        }

    def _open_log(self) -> None:
        self._log = MetricsLog(
            self._folder.path / "metrics.jsonl",
            before_step=self.progress.step,
            sinks=find_sinks(self.config.train.log_to),
        )

    def _write(self, metrics: Metrics) -> None:
        step = self.progress.step
        tokens = step * self.config.train.tokens_per_step
        line = {"step": step, "tokens": tokens, **metrics}
        self._ranks.on_first(lambda: self._log and self._log.append(line))

    def _save(self) -> None:
        if self.progress.step == self._saved_step:
            return
        self._read_losses()
        self._ranks.on_first(lambda: self._log and self._log.sync())
        progress = {
            "corpus": self.progress.corpus,
            "seconds": self.progress.seconds + self._pace.training_seconds,
            "unlogged": list(self.progress.unlogged),
        }
        self._saver.save(self.progress.step, progress, self._parameters, self._resume_tensors())
        self._saved_step = self.progress.step

    def _resume_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides the weights."""
        return optimizer_tensors(self._parameters, self._optimizer) | self._feed.tensors()

    def _write_step(self, step: int, folder: Path, weights: dict[str, Tensor]) -> None:
        adapter = self._adapter and replace(self._adapter, step=step)
        tokenizer = self._corpus.tokenizer
        save_learned(folder / MODEL, self.config.model, weights, adapter, tokenizer)
        (folder / RUN).write_text(dump_toml(self.config), encoding="utf-8")

    def _restore(self, step_folder: Path) -> None:
        refuse_other_base(step_folder / MODEL, self._adapter)
        alone, state = self._ranks.size == 1, self._resume_tensors()
        read_tensors(step_folder / MODEL, self._parameters, alone=alone)
        read_tensors(step_folder / STATE, state, alone=alone)
        self._feed.restore(state)
        self._saved_step = self.progress.step


def accumulate_gradients(
    model: Decoder,
    parts: Iterable[tuple[Batch, DecoderState | None]],
    num_targets: int,
    autocast: Autocast,
    *,
    processes: int = 1,
    row: SequenceRanks | None = None,
) -> tuple[Tensor, list[DecoderState]]:
    """Add the gradients of the mean loss over all parts of a step.

    Args:
        model: its gradients grow.
        parts: batches, and the state before each.
        num_targets: tokens to predict in all parts of all processes.
        autocast: makes the context of the forward pass.
        processes: how many share the step, each with parts of its own; their gradients are
            averaged.
        row: the processes that this one's rows are spread over.

    Returns:
        This process's share of the loss, nats per token, on the model's device, and the state
        after each part, through which no gradient flows on.
    """
    losses, after = [], []
    for batch, state in parts:
        with autocast():
            got = score(
                model, batch.inputs, batch.targets, state=state, starts=batch.starts, sequence=row
            )
        loss = got.nats / num_targets
        (loss * processes).backward()
        losses.append(loss.detach())
        after.append(detach_state(got.state))
    return torch.stack(losses).sum(), after


def derived_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed of its own for each purpose."""
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
