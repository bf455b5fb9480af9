"""What goes to the terminal beside a command's own output."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {*map(ord, "\t\n")}, "\ufffd")


def note(text: str) -> None:
    """Say something about the output, on standard error: it is not part of the output."""
    Console(stderr=True).print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def show_piece(piece: str) -> None:
    """Print a piece of generated text at once.

    A terminal obeys control characters, and a model may write any: there they become U+FFFD.
    """
    text = piece.translate(CONTROLS) if sys.stdout.isatty() else piece
    print(text, end="", flush=True)


def show_prompt(prompt: str) -> None:
    """Show a prompt before its continuation, if someone is looking."""
    if sys.stdout.isatty():
        Console().print(prompt, end="", style="bold", markup=False, highlight=False, soft_wrap=True)
        sys.stdout.flush()


@contextmanager
def token_bar(what: str, unit: str = "tokens") -> Iterator[Callable[[int, int], None]]:
    """Give a function to call with tokens done and in all; it draws a bar on standard error."""
    columns = (
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, rate="")

        def show(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(
                task,
                completed=done,
                total=total,
                rate=f"{speed:,.0f} {unit}/s" if speed else "",
            )

        yield show


@contextmanager
def byte_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function to call with bytes done and in all; it draws a bar on standard error."""
    columns = (
        TextColumn(what),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)
