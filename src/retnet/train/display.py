"""What a person sees of a run: a bar on a terminal, plain lines in a pipe."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from retnet.data import Progress as Report

LINES = 25
"""Of a whole run in a pipe, about so many; validation lines come on top."""

LINE_SECONDS = 60
"""Of silence in a pipe; then there are more lines."""

REFRESH_SECONDS = 0.5


class RunningMean:
    """Exponential mean of the last ten values or so, without a bias towards the first."""

    def __init__(self) -> None:
        self._total = self._weight = 0.0

    def add(self, value: float) -> None:
        """Take one more value."""
        self._total = 0.9 * self._total + 0.1 * value
        self._weight = 0.9 * self._weight + 0.1

    @property
    def value(self) -> float:
        """The mean; 0 before the first value."""
        return self._total / self._weight if self._weight else 0.0


class Pace:
    """Tokens per second, share of the peak and time left, from the steps of this session.

    Args:
        tokens_per_step: that the whole run learns from.
        clock: seconds since some moment.
        peak_tokens_per_s: speed at which the machine would do nothing but multiply matrices, see
            `retnet.train.peak`; None if it is not known.

    Attributes:
        training_seconds: spent in steps, and not in validation, saving and the like.
    """

    def __init__(
        self,
        tokens_per_step: int,
        clock: Callable[[], float] = time.perf_counter,
        *,
        peak_tokens_per_s: float | None = None,
    ) -> None:
        self.training_seconds = 0.0
        self._tokens_per_step = tokens_per_step
        self._peak_tokens_per_s = peak_tokens_per_s
        self._clock = clock
        self._began = self._step_began = clock()
        self._steps = 0
        self._step_seconds = RunningMean()

    def begin_step(self) -> None:
        """A step starts now."""
        self._step_began = self._clock()

    def end_step(self) -> None:
        """The step has ended."""
        seconds = self._clock() - self._step_began
        self.training_seconds += seconds
        self._steps += 1
        self._step_seconds.add(seconds)

    @property
    def tokens_per_s(self) -> float:
        """Speed of the last ten steps or so; 0 before the first."""
        seconds = self._step_seconds.value
        return self._tokens_per_step / seconds if seconds else 0.0

    def share_of_peak(self, tokens_per_s: float) -> float | None:
        """Share of the machine's peak that a speed takes; None if the peak is not known."""
        peak = self._peak_tokens_per_s
        return None if peak is None else tokens_per_s / peak

    def seconds_left(self, steps: int) -> float:
        """Time for some more steps, if validation and all else go on as they did."""
        return steps * (self._clock() - self._began) / self._steps if self._steps else 0.0


class Display:
    """Speaks to a console: with a bar where lines can be redrawn, in plain lines elsewhere.

    Args:
        console: standard output if None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        # A terminal with TERM=dumb is a pipe that somebody reads.
        self._redraws = self._console.is_terminal and not self._console.is_dumb_terminal
        self._bar: Progress | None = None
        self._spoke = 0.0
        self._next_line = 0
        self._steps = 0

    @classmethod
    def silent(cls) -> "Display":
        """A display that shows nothing, for all processes of a run but the first."""
        # No terminal: a bar would take over standard output, even to show nothing there.
        return cls(Console(quiet=True, force_terminal=False))

    def note(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        # Texts and paths are shown as they are.
        self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    @contextmanager
    def preparing(self) -> Iterator[Report]:
        """Give a function that shows how far reading and tokenising have come."""
        if not self._redraws:
            told: set[str] = set()

            def tell(what: str, _: int, total: int | None) -> None:
                if what not in told:
                    told.add(what)
                    self.note(what + (f" ({total / 1e6:.1f} MB)" if total else ""))

            yield tell
            return
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task("reading", total=None, text="")

            def show(what: str, done: int, total: int | None) -> None:
                text = f"{done / 1e6:.1f} MB" + (f" of {total / 1e6:.1f}" if total else "")
                bar.update(task, description=what, completed=done, total=total, text=text)

            yield show

    @contextmanager
    def training(self, step: int, steps: int) -> Iterator[None]:
        """Show the run's progress while the block lasts."""
        self._steps, self._next_line = steps, step
        if not self._redraws:
            yield
            return
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
        )
        # Drawn by the loop, not by a thread that would take its turns from the model.
        self._bar = Progress(*columns, console=self._console, auto_refresh=False)
        with self._bar as bar:
            bar.add_task("", total=steps, completed=step, text="")
            bar.refresh()
            try:
                yield
            finally:
                bar.refresh()
                self._bar = None

    def step(self, step: int, loss: float, pace: Pace) -> None:
        """Show that a step is done."""
        share = pace.share_of_peak(pace.tokens_per_s)
        text = (
            f"loss {loss:.3f}  {pace.tokens_per_s:,.0f} tokens/s  "
            + (f"{share:.0%} of peak  " if share is not None else "")
            + f"{clock_time(pace.seconds_left(self._steps - step))} left"
        )
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, text=text)
            if now - self._spoke >= REFRESH_SECONDS:
                self._spoke = now
                self._bar.refresh()
        elif step >= self._next_line or step == self._steps or now - self._spoke >= LINE_SECONDS:
            self._spoke = now
            self._next_line = step + max(self._steps // LINES, 1)
            self.note(f"step {step}/{self._steps}  {text}")

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Print what a validation found."""
        self.note(
            f"step {step}: held-out loss {values['valid_loss']:.3f}, "
            f"{values['valid_bits_per_byte']:.3f} bits per byte; state carried through: "
            f"{values['valid_loss_carried']:.3f}, {values['valid_bits_per_byte_carried']:.3f}"
        )

    def sample(self, step: int, text: str) -> None:
        """Print a sample text, indented."""
        self.note(f"step {step} writes:" if text else f"step {step} writes nothing")
        for line in text.splitlines():
            # A young model may write what a terminal would take for commands.
            shown = (c if c.isprintable() or c == "\t" else "\ufffd" for c in line)
            self.note("  | " + "".join(shown))


def clock_time(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
