"""Run an experiment again on this machine, from first to last.

NAME is one of
  positions  which mixers can tell where they are in a text of equal tokens (a minute)

Example: retnet reproduce positions --page docs/rivals.md
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from retnet.cli.options import parse

NAMES = ("positions",)


@dataclass(frozen=True, kw_only=True)
class Options:
    """See the module."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """What to run."""
    draws: Annotated[int, arg(metavar="N")] = 5
    """Random models of each kind."""
    page: Annotated[Path | None, arg(metavar="FILE")] = None
    """Then write the tables of this Markdown page of the rivals again."""
    agreement: Annotated[Path, arg(metavar="FILE")] = Path("tests/golden/agreement.json")
    """For the page: what `pytest --agreement FILE` wrote."""


def main(words: Sequence[str]) -> None:
    """Run `retnet reproduce`."""
    options = parse(Options, "reproduce", words, __doc__ or "")
    if options.name not in NAMES:
        raise ValueError(f'"{options.name}" is no experiment; choose one of {", ".join(NAMES)}')
    if options.draws < 1:
        raise ValueError(f"draws ({options.draws}) must be at least 1; raise it")

    from rich.console import Console
    from rich.progress import track

    from retnet.reproduce.positions import position_configs, position_row, position_table

    console = Console()
    rows = [
        position_row(name, config, options.draws)
        for name, config in track(
            position_configs().items(), "probing", console=console, transient=True
        )
    ]
    console.print(position_table(rows).rich())
    if options.page is not None:
        from retnet.reproduce.rivals import write_rivals

        write_rivals(options.page, rows, options.agreement)
