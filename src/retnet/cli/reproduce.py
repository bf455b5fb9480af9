"""Run an experiment of the paper again on this machine; a killed one goes on where it was.

NAME is one of
  table5         RetNet and ten rivals at equal parameters and data: perplexity
  table6         RetNet without gate, head norm, decay or decays that differ
  figure5        loss against size, RetNet and Transformer
  figure6        decoding: memory, speed and latency, by `retnet bench decode`
  table4         training: memory and speed, by `retnet bench train`
  table8         the same last tokens from more and more context
  extrapolation  position methods on texts far longer than in training
  probes         recall, copying, needles, automata, positions, learned by mixers
  lm-layouts     decoder-only, prefix-LM, encoder-decoder: sight or weights?
  quality        the best small model: RetNet, improved, beside Transformer and RWKV
  positions      which mixers can tell where they are in a text of equal tokens

Example: retnet reproduce table5 --scale smoke
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from retnet.cli.options import parse

POSITIONS = "positions"
DRAWS = 5

AGREEMENT = Path("tests/golden/agreement.json")
"""What `pytest --agreement FILE` wrote, for the page of the rivals."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """See the module."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """What to run."""
    scale: Annotated[str, arg(metavar="NAME")] = "cpu"
    """smoke, cpu, gpu or paper."""
    data: Annotated[Path | None, arg(metavar="FILE")] = None
    """TOML file that names your texts."""
    models: Annotated[tuple[str, ...], arg(metavar="...")] = ()
    """Only these; the others may come later."""
    tokens: Annotated[int, arg(metavar="N")] = 0
    """To learn from, instead of the scale's."""
    seeds: Annotated[int, arg(metavar="N")] = 0
    """Instead of the scale's."""
    rates: Annotated[tuple[float, ...], arg(metavar="...")] = ()
    """Learning rates to try, not the scale's."""
    minutes: Annotated[float, arg(metavar="X")] = 0.0
    """Begin nothing after so long."""
    workers: Annotated[int | None, arg(metavar="N")] = None
    """Processes to share the work."""
    cluster: Annotated[str, arg(metavar="URL")] = ""
    """Scheduler of Dask, for its workers."""
    only: Annotated[Literal["run", "estimate", "page"], arg(metavar="WHAT")] = "run"
    """run, estimate (the time) or page."""
    results: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/results")
    """Results and pages."""
    work: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/reproduce")
    """Models, and unfinished ones."""
    page: Annotated[Path | None, arg(metavar="FILE")] = None
    """For positions: page to write again."""


def main(words: Sequence[str]) -> None:
    """Run `retnet reproduce`."""
    options = parse(Options, "reproduce", words, __doc__ or "")
    if options.name == POSITIONS:
        _positions(options)
        return
    if options.page is not None:
        raise ValueError(
            f"--page ({options.page}) is for `retnet reproduce {POSITIONS}`; other experiments "
            "write their page to --results"
        )

    from retnet.reproduce.command import Wish, reproduce

    reproduce(
        Wish(
            name=options.name,
            scale=options.scale,
            data=options.data,
            models=options.models,
            tokens=options.tokens,
            seeds=options.seeds,
            rates=options.rates,
            minutes=options.minutes,
            workers=options.workers,
            cluster=options.cluster,
            results=options.results,
            work=options.work,
            only=options.only,
        )
    )


def _positions(options: Options) -> None:
    if options.seeds < 0:
        raise ValueError(f"seeds ({options.seeds}) must be 0 or more; raise it")

    from rich.console import Console
    from rich.progress import track

    from retnet.reproduce.positions import position_configs, position_row, position_table

    console = Console()
    rows = [
        position_row(name, config, options.seeds or DRAWS)
        for name, config in track(
            position_configs().items(), "probing", console=console, transient=True
        )
    ]
    console.print(position_table(rows).rich())
    if options.page is not None:
        from retnet.reproduce.rivals import write_rivals

        write_rivals(options.page, rows, AGREEMENT)
