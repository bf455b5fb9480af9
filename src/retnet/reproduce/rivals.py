"""The page of the rivals: what each branch computes, remembers and costs, from the registries."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch

from retnet.bench.page import rewrite_blocks
from retnet.bench.table import Table
from retnet.mixers import CHANNEL_MIXERS, MIXERS, Branch
from retnet.model import DecoderConfig, preset, rival
from retnet.reproduce.positions import PositionRow, position_table

BASE = "small-16m"
READ = (1_000, 32_000, 1_000_000)


def write_rivals(page: Path, positions: list[PositionRow], agreement: Path) -> bool:
    """Write the tables of the page anew.

    Args:
        page: Markdown with the markers `rivals`, `agreement` and `positions`.
        positions: of the probe.
        agreement: what the tests wrote under `--agreement`.

    Returns:
        Whether the page changed.
    """
    return rewrite_blocks(
        page,
        {
            "rivals": lambda: "\n".join(rivals_text()),
            "agreement": lambda: agreement_table(json.loads(agreement.read_text())).markdown(),
            "positions": lambda: position_table(positions).markdown(),
        },
    )


def state_table() -> Table:
    """What a layer of each token mixer remembers of a text, in decoders of equal size."""
    base = preset(BASE)
    rows = []
    for name in MIXERS:
        branch = _branch(rival(base, name))
        sizes = [branch.state_size(tokens) for tokens in READ]
        grows = "no" if branch.state_size(2 * READ[-1]) == sizes[-1] else "yes"
        rows.append((name, *(f"{size:,}" for size in sizes), grows))
    return Table(
        title="Numbers in a layer's state of one row",
        columns=("mixer", *(f"after {tokens:,} tokens" for tokens in READ), "grows"),
        rows=rows,
        caption=f"Decoders of the size of {BASE}: d_model {base.d_model}.",
    )


def rivals_text() -> Iterator[str]:
    """The table of states, then a section for each branch, in Markdown."""
    yield state_table().markdown()
    for title, registry in (("Token mixers", MIXERS), ("Channel mixers", CHANNEL_MIXERS)):
        yield f"### {title}\n"
        for name, config in registry.items():
            described = cast(Any, config)
            about = inspect.getdoc(config) or ""
            lines = [
                f"**`{name}`**: {' '.join(about.split(chr(10) * 2)[0].split())}\n",
                f"- computes `{described.formula}`",
                f"- costs per token, in training / decoding: {described.cost}",
            ]
            left_out = getattr(config, "left_out", "")
            yield "\n".join([*lines, *([f"- left out: {left_out}"] if left_out else [])]) + "\n"


def agreement_table(found: dict[str, dict[str, Any]]) -> Table:
    """How far our numbers are from those of the reference implementations."""
    rows = [
        (
            f"`{name}`",
            entry["oracle"],
            f"{entry['float64'] * 1e-9:.0e}" if "float64" in entry else "",
            f"{entry['float32']:.0%}" if "float32" in entry else "",
        )
        for name, entry in found.items()
    ]
    return Table(
        title="Agreement with public implementations",
        columns=("file of tests/golden", "made by", "float64", "float32, of its limit"),
        rows=rows,
        caption=(
            "float64: the largest error, as a share of the largest number (of 1, if that is "
            "larger). float32: the largest error as a share of the file's own limit, five times "
            "the rounding error of the implementation that made it."
        ),
    )


def _branch(config: DecoderConfig) -> Branch:
    mixer = config.layers[0].mixer
    assert mixer is not None
    with torch.device("meta"):
        return cast(Branch, mixer.build(config.d_model))
