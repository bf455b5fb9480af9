"""Train a model as a TOML file says, or go on training it.

Every setting of the file is also a flag, under its own dotted name.

Examples:
  retnet train configs/tiny.toml                        train, or go on
  retnet train configs/tiny.toml --train.steps 100      with another setting
  retnet train configs/tiny.toml --help                 lists the settings
  torchrun --nproc-per-node 2 -m retnet train configs/tiny.toml   on two processes

The run's folder is `runs/<name of the file>`, unless [run] names another.
"""

import os
from collections.abc import Sequence

from retnet.cli.status import FAILED, INTERRUPTED, OK

USAGE = "usage: retnet train CONFIG.toml [-h] [--SECTION.SETTING VALUE ...]"


def main(words: Sequence[str]) -> int:
    """Run `retnet train`."""
    if not words or words[0] in ("-h", "--help"):
        print(f"{USAGE}\n\n{(__doc__ or '').strip()}")
        return OK
    if words[0].startswith("-"):
        raise ValueError(f"{words[0]} stands before the TOML file, which must come first; {USAGE}")

    from retnet.train import cli_config, train

    try:
        config = cli_config(words[0], words[1:], prog=f"retnet train {words[0]}")
    except ValueError:
        if os.environ.get("RANK", "0") == "0":
            raise
        return FAILED  # torchrun's first process says what all have found
    return OK if train(config).finished else INTERRUPTED
