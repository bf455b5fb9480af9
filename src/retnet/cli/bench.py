"""Measure speed, memory and agreement, each result as a line of JSON.

NAME is one of
  cpu       ops, train, prefill, decode without the longest cases (10 minutes)
  ops       retention alone: its forms, and torchscale's code beside it
  scan      the diagonal recurrence of LRU and QRNN, beside a Python loop
  rwkv      RWKV-4: training, prompts and decoding, beside transformers and rwkv
  train     whole training steps, beside other people's decoders of equal size
  prefill   reading a prompt, likewise, and a text of a million tokens
  decode    time and memory of the next token after texts of any length
  forms     how far the forms of a model disagree, in three precisions
  document  memory of training on a document of a million tokens, state carried
  kills     a run killed 200 times beside one never interrupted (20 minutes)
  serve     the engine of `retnet serve` alone, in company, beside decoding
  beside    that engine beside the continuous batching of transformers
  load      clients at a server: requests, tokens, waiting, what HTTP costs
  soak      a server in use for ten minutes, killed half way: what is lost
  sessions  10,000 sessions on disk: resuming one, committing a turn, forking
  gpu       the next three on a CUDA device: ten minutes
  gpu-ops     retention alone, beside flash-linear-attention and attention
  gpu-train   training steps of 1.3 billion parameters, beside attention
  gpu-decode  decoding with 6.7 billion, likewise

Example: retnet bench forms --quick
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from retnet.cli.options import parse
from retnet.cli.threads import short_spins

SERVERS = ("serve", "beside", "load")
"""Benches of a process that reads prompts and writes texts in turns."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """See the module."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """What to measure."""
    quick: FlagCreatePairsOff[bool] = False
    """Toy sizes, to see that it works."""
    checkpoint: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """For forms and decode: this model."""
    minutes: Annotated[float | None, arg(metavar="N")] = None
    """Of soak."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("benchmarks/results")
    """Where results are added."""
    page: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write this page's tables again."""


def main(words: Sequence[str]) -> None:
    """Run `retnet bench`."""
    options = parse(Options, "bench", words, __doc__ or "")
    if options.name in SERVERS:
        short_spins()

    from retnet.bench import show_bench, update_docs

    result = show_bench(
        options.name,
        out=options.out,
        quick=options.quick,
        checkpoint=options.checkpoint,
        minutes=options.minutes,
    )
    if options.page is not None:
        update_docs(options.page, options.out, [] if options.quick else result.pictures)
    if result.failed:
        raise ValueError(
            f"{len(result.failed)} cases failed their gate and have no record; see above"
        )
