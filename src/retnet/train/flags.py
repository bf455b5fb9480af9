"""Command-line flags made from the dataclasses: each setting under its own dotted name."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from retnet.train.config import RunConfig, load_config

DESCRIPTION = (
    "Settings of the run; what is not given comes from the TOML file, whose values are shown as "
    "defaults. --model.preset NAME replaces the file's preset, and --model.mixer NAME all token "
    "mixers at equal size; layers are described in the file."
)


@dataclass(frozen=True)
class _Model:
    preset: str = ""
    mixer: str = ""


@dataclass(frozen=True)
class _Preset:
    """The keys of the file that are no fields: they stand for many."""

    model: _Model = field(default_factory=_Model)


def cli_config(path: str | Path, argv: Sequence[str], *, prog: str = "retnet train") -> RunConfig:
    """The config of a TOML file, changed by command-line flags.

    Args:
        path: the TOML file.
        argv: flags such as `["--train.steps", "100", "--data.train", "a.txt", "b.txt"]`.
        prog: what `--help` and messages call the program.

    Raises:
        ValueError: as `load_config`.
        SystemExit: a flag is wrong, which is said on stderr (2), or is `--help` (0).
    """
    chosen, rest = tyro.cli(
        _Preset, args=argv, use_underscores=True, add_help=False, return_unknown_args=True
    )
    overrides = {f"model.{key}": value for key, value in vars(chosen.model).items() if value}
    return tyro.cli(
        RunConfig,
        prog=prog,
        description=DESCRIPTION,
        args=rest,
        default=load_config(path, overrides),
        use_underscores=True,
        # A layer's branches are chosen in the file; a flag for them could only be refused.
        config=(tyro.conf.SuppressFixed, tyro.conf.AvoidSubcommands),
    )
