"""The training loop: step, save, report, again."""

import hashlib
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retnet.data import Batch, Corpus, training_batch
from retnet.hub import dump_toml, load_checkpoint, save_checkpoint
from retnet.model import Decoder
from retnet.model.scoring import score
from retnet.train.config import RunConfig
from retnet.train.display import Display, Pace, RunningMean
from retnet.train.folder import RunFolder
from retnet.train.metrics import Metrics, MetricsLog
from retnet.train.optimizer import build_optimizer, optimizer_tensors, restore_optimizer
from retnet.train.schedule import learning_rate
from retnet.train.signals import StopRequest, StopRequested
from retnet.train.validation import Validation

OPTIMIZER = "optimizer.safetensors"
RUN = "run.toml"

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(kw_only=True)
class Progress:
    """What a run knows besides weights and optimizer; saved with each step.

    Attributes:
        corpus: fingerprint of the text.
        step: updates done.
        seconds: spent in steps.
        unlogged: loss and gradient norm of the steps since the last line of the log.
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
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.config = config
        self.progress = progress
        self._corpus = corpus
        self._folder = folder
        self._display = display
        self._device = device
        self._autocast = partial(
            torch.autocast,
            device.type,
            dtype=torch.bfloat16,
            enabled=config.train.precision == "bfloat16",
        )
        torch.manual_seed(derived_seed(config.run.seed, "weights"))
        self.model = Decoder(config.model).to(device).train()
        self._optimizer = build_optimizer(self.model, config.train)
        self._saved_step = 0
        if progress.step:
            self._restore(folder.trainer / f"step-{progress.step}")
        self._validation = Validation(config, corpus, device, self._autocast)
        self._log = MetricsLog(folder.path / "metrics.jsonl", before_step=progress.step)
        self._unread: list[tuple[Tensor, Tensor]] = []
        self._losses = RunningMean()
        self._logged = (progress.step, 0.0)

    def run(self) -> bool:
        """Train to the last step; False if a signal asked to stop before."""
        progress, steps = self.progress, self.config.train.steps
        self._pace = Pace(self.config.train.tokens_per_step)
        with StopRequest() as stop, self._display.training(progress.step, steps):
            try:
                if progress.step:
                    self._report(stop)
                while progress.step < steps:
                    self._step()
                    if self._due(self.config.train.save_every) or stop.name:
                        self._save()
                    if stop.name:
                        raise StopRequested
                    self._report(stop)
            except StopRequested:
                self._save()
                return False
            finally:
                self._log.close()
        return True

    def _step(self) -> None:
        config, progress = self.config, self.progress
        self._pace.begin_step()
        torch.manual_seed(derived_seed(config.run.seed, f"step {progress.step}"))
        rate = learning_rate(config.train, progress.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = accumulate_gradients(
            self.model, self._batches(), config.train.tokens_per_step, self._autocast
        )
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), config.train.clip_norm or math.inf
        )
        self._unread.append((loss, norm))
        progress.step += 1
        if self._device.type == "cpu":
            self._read_losses()  # before the update: the weights stay sound
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._pace.end_step()
        self._display.step(progress.step, self._losses.value, self._pace)

    def _batches(self) -> Iterable[Batch]:
        train = self.config.train
        for part in range(train.accumulate):
            batch = training_batch(
                self._corpus.train,
                seq_len=train.seq_len,
                batch_size=train.batch_size,
                seed=self.config.run.seed,
                step=self.progress.step,
                micro_step=part,
                micro_steps=train.accumulate,
            )
            yield Batch(*(tensor.to(self._device, non_blocking=True) for tensor in batch))

    def _due(self, every: int) -> bool:
        step, steps = self.progress.step, self.config.train.steps
        return step == steps or (every > 0 and step % every == 0)

    def _read_losses(self) -> None:
        """Fetch losses from the device, which waits for it; stop if one is no number."""
        if not self._unread:
            return
        first = self.progress.step - len(self._unread) + 1
        values = torch.stack([torch.stack(pair) for pair in self._unread]).tolist()
        self._unread.clear()
        for step, (loss, norm) in enumerate(values, first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise ValueError(self._diverged(f"loss ({loss}) and gradient norm ({norm})", step))
            self.progress.unlogged.append((loss, norm))
            self._losses.add(loss)

    def _diverged(self, what: str, step: int) -> str:
        saved = self._saved_step
        kept = f"the checkpoint of step {saved} is kept" if saved else "there is no checkpoint yet"
        return (
            f"{what} of step {step} must be finite numbers: training diverged; {kept}. Start a new "
            f"run in another run.dir with a lower train.learning_rate "
            f"({self.config.train.learning_rate}), more train.warmup_steps "
            f"({self.config.train.warmup_steps}) or a train.clip_norm "
            f"({self.config.train.clip_norm}) between 0 and 1"
        )

    def _report(self, stop: StopRequest) -> None:
        train, step = self.config.train, self.progress.step
        if self._due(train.log_every) or step == 1:
            self._write(self._training_metrics())
        if train.sample_tokens and self._due(train.sample_every):
            text = self._validation.sample(self.model)
            self._display.sample(step, text)
            self._write({"sample": text})
        if self._due(train.eval_every):
            self._read_losses()
            values = self._validation.score(self.model, stop.stoppable)
            if not all(map(math.isfinite, values.values())):
                raise ValueError(self._diverged(f"validation losses ({values})", step))
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
        progress.unlogged.clear()
        return {
            "loss": math.fsum(losses) / len(losses),
            "grad_norm": math.fsum(norms) / len(norms),
            "learning_rate": learning_rate(self.config.train, progress.step - 1),
            "tokens_per_s": round(tokens / seconds, 1) if tokens else None,
            "seconds": round(progress.seconds + self._pace.training_seconds, 3),
        }

    def _write(self, metrics: Metrics) -> None:
        step = self.progress.step
        tokens = step * self.config.train.tokens_per_step
        self._log.append({"step": step, "tokens": tokens, **metrics})

    def _save(self) -> None:
        if self.progress.step == self._saved_step:
            return
        self._read_losses()
        self._log.sync()
        saved = {
            "corpus": self.progress.corpus,
            "seconds": self.progress.seconds + self._pace.training_seconds,
            "unlogged": self.progress.unlogged,
        }
        self._folder.save(self.progress.step, saved, self._write_step)
        self._saved_step = self.progress.step

    def _write_step(self, folder: Path) -> None:
        save_checkpoint(folder, self.model)
        save_file(optimizer_tensors(self.model, self._optimizer), folder / OPTIMIZER)
        (folder / RUN).write_text(dump_toml(self.config), encoding="utf-8")

    def _restore(self, folder: Path) -> None:
        saved, _ = load_checkpoint(folder)
        # Copied into the new model's own memory: see `restore_optimizer`.
        self.model.load_state_dict(saved.state_dict())
        restore_optimizer(self.model, self._optimizer, load_file(folder / OPTIMIZER))
        self._folder.publish(folder)
        self._saved_step = self.progress.step


def accumulate_gradients(
    model: Decoder, batches: Iterable[Batch], num_targets: int, autocast: Autocast
) -> Tensor:
    """Add the gradients of the mean loss over all batches.

    Args:
        model: its gradients grow.
        batches: parts of a step.
        num_targets: tokens to predict in all of them.
        autocast: makes the context of the forward pass.

    Returns:
        The loss, nats per token, on the model's device.
    """
    total = torch.zeros((), device=model.embed_tokens.weight.device)
    for batch in batches:
        with autocast():
            nats = score(model, batch.inputs, batch.targets, starts=batch.starts).nats
        loss = nats / num_targets
        loss.backward()
        total += loss.detach()
    return total


def derived_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed of its own for each purpose."""
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
