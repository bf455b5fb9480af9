"""Which mixers can tell where they are in a text of equal tokens: a table, by one command."""

from dataclasses import replace
from typing import Any, NamedTuple

from retnet.bench.table import Table
from retnet.evaluate.position import SAME, PositionScore, probe_positions
from retnet.mixers import MIXERS
from retnet.model import DecoderConfig, preset, rival

BASE = "small-1m"
TOKENS = 32

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "retention, no head norm": ("retention", {"num_heads": 2, "head_norm": "none"}),
    "retention, nothing rotated": ("retention", {"num_heads": 2, "theta": "none"}),
    "attention, no position": ("attention", {"num_heads": 2, "position": "none"}),
    "attention, ALiBi": ("attention", {"num_heads": 2, "position": "alibi"}),
    "attention, window of 8": ("attention", {"num_heads": 2, "window": 8}),
    "attention, URPE": ("attention", {"num_heads": 2, "urpe": 32}),
    "attention, l2 weights": ("attention", {"num_heads": 2, "weights": "l2"}),
    "attention, no denominator": ("attention", {"num_heads": 2, "weights": "exp"}),
    "linear_attention, not normalised": (
        "linear_attention",
        {"num_heads": 2, "normalize": False},
    ),
    "gau, relu2": ("gau", {"kernel": "relu2"}),
    "aft, full": ("aft", {"variant": "full", "max_len": 64}),
    "rwkv, no token shift": ("rwkv", {"token_shift": False}),
}
"""Name -> mixer and fields: what else is worth a line, beside each mixer as it usually is."""


class PositionRow(NamedTuple):
    """Scores of several draws of one decoder.

    Attributes:
        name: of the mixer or variant.
        layer: of its first layer alone.
        stack: of all layers.
        with_bos: of all layers, after a first token of its own.
    """

    name: str
    layer: list[PositionScore]
    stack: list[PositionScore]
    with_bos: list[PositionScore]

    @property
    def verdict(self) -> str:
        """In words."""
        if tells(self.layer):
            return "knows"
        if tells(self.stack):
            return "knows in deeper layers"
        return "knows after BOS" if tells(self.with_bos) else "cannot tell"


def tells(scores: list[PositionScore]) -> bool:
    """Whether at least half of the positions have an output of their own, in most draws."""
    return 2 * sum(2 * score.told_apart >= score.tokens for score in scores) > len(scores)


def position_configs() -> dict[str, DecoderConfig]:
    """Decoders of equal size, one for each mixer, and the variants."""
    base = replace(preset(BASE), vocab_size=2)
    usual: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in MIXERS}
    both = dict(sorted((usual | VARIANTS).items()))
    return {name: rival(base, mixer, **fields) for name, (mixer, fields) in both.items()}


def position_row(name: str, config: DecoderConfig, draws: int) -> PositionRow:
    """Probe one decoder: its first layer, all of it, and all of it after a first token."""
    first = replace(config, layers=(replace(config.layers[0], repeat=1),))
    scores = (
        probe_positions(probed, tokens=TOKENS, bos=bos, draws=draws)
        for probed, bos in ((first, False), (config, False), (config, True))
    )
    return PositionRow(name, *scores)


def position_table(rows: list[PositionRow]) -> Table:
    """What the rows say."""
    draws = len(rows[0].stack)
    return Table(
        title=f"Positions told apart in a text of {TOKENS} equal tokens",
        columns=("mixer", "spread", "one layer", "all layers", "after BOS", "verdict"),
        rows=[
            (
                row.name,
                f"{sorted(score.spread for score in row.layer)[draws // 2]:.0e}",
                *(_told_apart(scores) for scores in row[1:]),
                row.verdict,
            )
            for row in rows
        ],
        caption=(
            f"{BASE} and rivals of its size, {draws} draws of random weights each, float64; the "
            "same token over and over, or after another one (BOS). Spread: how far the outputs of "
            "one layer are from the first, as a share of the largest number, the middle of the "
            f"draws. Outputs that differ by less than {SAME:g} of it count as one; fewest to most "
            "of the draws. The verdict is that of most draws, for at least half of the positions."
        ),
    )


def _told_apart(scores: list[PositionScore]) -> str:
    fewest, most = (f(score.told_apart for score in scores) for f in (min, max))
    return f"{fewest}" if fewest == most else f"{fewest} to {most}"
