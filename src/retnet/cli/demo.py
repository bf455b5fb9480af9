"""Train, score and sample a small RetNet on Python's own source: about two minutes.

Nothing is downloaded. Typed again, it goes on where it stopped, or shows its results again.

Example: retnet demo --dir runs/demo --seconds 30
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from retnet.cli.options import parse
from retnet.cli.status import INTERRUPTED, OK


@dataclass(frozen=True, kw_only=True)
class Options:
    """See the module."""

    dir: Path = Path("runs/demo")
    """Folder to keep the model in."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Another seed, another model."""
    seconds: Annotated[float, arg(metavar="X")] = 105.0
    """Time to train for; what it makes of it depends on the machine."""
    steps: Annotated[int | None, arg(metavar="N")] = None
    """Train for so many steps instead."""
    fresh: FlagCreatePairsOff[bool] = False
    """Delete the demo that is already in the folder."""


def main(words: Sequence[str]) -> int:
    """Run `retnet demo`."""
    options = parse(Options, "demo", words, __doc__ or "")

    from retnet.reproduce import DemoOptions, run_demo

    return OK if run_demo(DemoOptions(**asdict(options))) is not None else INTERRUPTED
