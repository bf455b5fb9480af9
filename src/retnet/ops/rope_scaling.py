"""Rotary frequencies for texts longer than those of the training: PI, NTK, YaRN, Llama 3.

A model that read N tokens in training has never seen the slow pairs of channels turn any further.
Each rule slows pairs down so that k N tokens look like N, the fast pairs less than the slow ones,
because those tell neighbours apart.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops.rotation import frequencies

ScalingKind = Literal[
    "linear", "ntk", "ntk_old", "ntk_fixed", "ntk_mixed", "dynamic", "yarn", "llama3"
]
TURNS = {"yarn": (1.0, 32.0), "llama3": (1.0, 4.0)}


@dataclass(frozen=True, kw_only=True)
class RoPEScaling:
    """How to slow rotary frequencies down.

    Pair m of d channels turns by `base^(-2m/d)` per token; d is a head's width, k the factor, N
    the original length.

    Attributes:
        kind: `linear`: all k times as slow, position interpolation (Chen et al. 2023,
            arXiv:2306.15595).
            `ntk`: the base times k^(d/(d-2)), the slowest pair k times as slow (bloc97 2023).
            `ntk_old`: the base times k (Su 2023, kexue.fm/archives/9675). `ntk_fixed`: that and
            all k^(2/d) times as slow (kexue.fm/archives/9706). `ntk_mixed`: pair m exp(a (m+1)^b)
            times as slow, with a such that the slowest pair is k times (the same page).
            `dynamic`: as `ntk`, with k growing from 1 as the text grows beyond N. The base
            changes at multiples of N, so that what was read is read the same by a longer text.
            `yarn`: by how often a pair turns in N tokens: those of many turns stay, those of few
            are k times as slow (Peng et al. 2023, arXiv:2309.00071). `llama3`: likewise with
            another ramp between (Llama 3.1).
        factor: k.
        original_len: N, tokens of a text in training.
        mix: b of `ntk_mixed`; 1 is `ntk_fixed`, 0 is `linear`.
        turns: in N tokens, of pairs that are k times as slow (or fewer turns) and of those that
            stay (or more); None: 1 and 32 for `yarn`, 1 and 4 for `llama3`.
        score_scale: of q and k alike; None: 1, but 0.1 ln k + 1 for `yarn`.
    """

    kind: ScalingKind
    factor: float
    original_len: int
    mix: float = 0.625
    turns: tuple[float, ...] | None = None
    score_scale: float | None = None

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise ValueError(f"factor ({self.factor}) must be at least 1; 1 changes nothing")
        if self.original_len < 1:
            raise ValueError(
                f"original_len ({self.original_len}) must be at least 1; give the tokens of a text "
                "in training"
            )
        if self.turns is not None and (
            self.kind not in TURNS or len(self.turns) != 2 or not 0 < self.turns[0] < self.turns[1]
        ):
            raise ValueError(
                f'turns ({self.turns}) must be two rising numbers, and kind "yarn" or "llama3"; '
                "leave them out for the usual ones"
            )
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix ({self.mix}) must be in [0, 1]; 0.625 is usual")

    @property
    def table_scale(self) -> float:
        """Factor of the rotation's tables, and so of q and k."""
        if self.score_scale is not None:
            return self.score_scale
        return 0.1 * math.log(self.factor) + 1 if self.kind == "yarn" else 1.0


def scaled_frequencies(
    scaling: RoPEScaling,
    width: int,
    base: float,
    device: torch.device | None = None,
    tokens: int | None = None,
) -> Float[Tensor, " pairs"]:
    """Angle per token of each channel pair, float64.

    Args:
        scaling: the rule.
        width: d, of a head.
        base: of the unscaled frequencies.
        device: where to make them.
        tokens: length of the text, which `dynamic` alone looks at; None means the original one.
    """
    plain = frequencies("rope", width, base, device)
    m = torch.arange(width // 2, dtype=torch.float64, device=device)
    k, d, N = scaling.factor, width, scaling.original_len
    match scaling.kind:
        case "linear":
            return plain / k
        case "ntk":
            return frequencies("rope", width, base * k ** _last(d), device)
        case "ntk_old":
            return plain / k ** (2 * m / d)
        case "ntk_fixed":
            return plain / k ** (2 * (m + 1) / d)
        case "ntk_mixed":
            return plain / k ** (2 * (m + 1) / d) ** scaling.mix
        case "dynamic":
            grown = max(k * (tokens or N) / N - (k - 1), 1.0)
            return frequencies("rope", width, base * grown ** _last(d), device)
        case "yarn":
            few, many = scaling.turns or TURNS["yarn"]
            low = max(math.floor(_pair_of(many, d, base, N)), 0)
            high = min(math.ceil(_pair_of(few, d, base, N)), d - 1)
            slowed = ((m - low) / max(high - low, 1e-3)).clamp(0, 1)
        case "llama3":
            few, many = scaling.turns or TURNS["llama3"]
            turns = N * plain / (2 * math.pi)
            slowed = 1 - ((turns - few) / (many - few)).clamp(0, 1)
    return plain * (1 - slowed) + plain / k * slowed


def _last(width: int) -> float:
    """Exponent that makes the slowest pair k times as slow; the only pair of two cannot be."""
    return width / max(width - 2, 1)


def _pair_of(turns: float, width: int, base: float, tokens: int) -> float:
    """The pair, as a real number, that turns so often in that many tokens."""
    return width * math.log(tokens / (turns * 2 * math.pi)) / (2 * math.log(base))
