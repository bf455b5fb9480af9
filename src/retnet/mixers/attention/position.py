"""Positions of attention: each way to tell a layer where its tokens stand, as a module.

Called with queries, keys and their positions, it gives queries, the keys to be kept, and the rule
by which the ones read the others.
"""

from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.mixers.attention.config import AttentionConfig
from retnet.mixers.precise import PreciseParameters
from retnet.ops import Layout
from retnet.ops.attention import bias
from retnet.ops.attention.blocks import Block
from retnet.ops.attention.rerope import Reread, rerope_scores, scores_by_length, turned_for_one
from retnet.ops.attention.rule import PLAIN, Rule
from retnet.ops.attention.xpos import xpos_scales
from retnet.ops.general_rotation import block_generator, turned_by, turns
from retnet.ops.rope_scaling import scaled_frequencies
from retnet.ops.rotation import frequencies, rotate, turning_tables

Encoded = tuple[Tensor, Tensor, Rule]


def make_position(config: AttentionConfig, width: int) -> nn.Module:
    """The module of a config, for heads of that width."""
    match config.position:
        case "none":
            return NoPosition()
        case "alibi":
            return FixedBias(config)
        case "sandwich":
            return FixedBias(config)
        case "kerple_power" | "kerple_log":
            return Kerple(config)
        case "general":
            return GeneralRotary(config, width)
        case "xpos":
            return XPos(config, width)
        case "rope":
            return RereadRotary(config, width) if config.rereads else Rotary(config, width)


class NoPosition(nn.Module):
    """Order is left to the causal mask."""

    def forward(self, q: Tensor, k: Tensor, positions: Tensor, layout: Layout) -> Encoded:  # noqa: ARG002
        """Nothing changes."""
        return q, k, PLAIN


class Rotary(nn.Module):
    """Queries and keys turn by their position."""

    def __init__(self, config: AttentionConfig, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width

    def forward(self, q: Tensor, k: Tensor, positions: Tensor, layout: Layout) -> Encoded:
        """Rotate both."""
        config = self.config
        cos, sin = layout.shared(
            ("attention rotation", config.scaling, config.rope_base, self.width, q.dtype)
            + (() if positions is layout.positions else ("random", config.random_positions)),
            lambda: self.tables(positions, q.dtype),
        )
        if q.shape[1] > 1:
            return rotate(q, cos, sin, config.pairs), rotate(k, cos, sin, config.pairs), PLAIN
        # what one token costs is the number of calls
        both = rotate(torch.cat((q, k), 2), cos, sin, config.pairs)
        q, k = torch.split_with_sizes(both, (config.num_heads, config.kv_heads), 2)
        return q, k, PLAIN

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines at these positions, (rows, T, 1, pairs)."""
        base, scaling = self.config.rope_base, self.config.scaling
        if scaling is None:
            return turning_tables(
                positions, frequencies("rope", self.width, base, positions.device), dtype
            )
        freq = scaled_frequencies(scaling, self.width, base, positions.device)
        cos, sin = turning_tables(positions, freq, dtype)
        return cos * scaling.table_scale, sin * scaling.table_scale


class XPos(nn.Module):
    """Rotary, and scores that fade with distance; keys are kept without their scales."""

    def __init__(self, config: AttentionConfig, width: int) -> None:
        super().__init__()
        self.rotary = Rotary(config, width)

    def forward(self, q: Tensor, k: Tensor, positions: Tensor, layout: Layout) -> Encoded:
        """Rotate now, scale when read."""
        q, k, _ = self.rotary(q, k, positions, layout)
        return q, k, Rule(turn=partial(self._scaled, layout))

    def _scaled(self, layout: Layout, q: Tensor, k: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        width, pairs = self.rotary.width, self.rotary.config.pairs
        of_q, of_k = layout.shared(
            ("xpos", width, pairs, block.name, q.dtype),
            lambda: xpos_scales(block, width, pairs, q.dtype),
        )
        return q * of_q, k * of_k


class RereadRotary(nn.Module):
    """Rotary whose keys are kept as they are and turn when they are read."""

    def __init__(self, config: AttentionConfig, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width

    def forward(self, q: Tensor, k: Tensor, positions: Tensor, layout: Layout) -> Encoded:
        """Choose the frequencies; nothing turns yet."""
        rerope = self.config.rerope
        one = q.shape[1] == 1
        if rerope is not None:
            freq = frequencies("rope", self.width, self.config.rope_base, positions.device)
            how = Reread(freq, self.config.pairs, rerope.window, rerope.slowdown)
            if one:
                return q, k, Rule(turn=partial(turned_for_one, how))
            return q, k, Rule(scores=partial(rerope_scores, how))
        config = self.config
        lengths, tables = layout.shared(
            ("attention dynamic", config.scaling, config.rope_base, config.pairs, self.width),
            lambda: self._of_lengths(positions),
        )
        if one and len(tables) == 1:
            [how] = tables.values()
            return q, k, Rule(turn=partial(turned_for_one, how))
        scores = partial(self._scores, lengths, tables)
        return q, k, Rule(scores=scores)

    def _of_lengths(self, positions: Tensor) -> tuple[Tensor, dict[int, Reread]]:
        scaling = self.config.scaling
        assert scaling is not None
        N = scaling.original_len
        lengths = (positions // N + 1) * N  # whole multiples: tables change seldom
        tables = {}
        for length in lengths.unique().tolist():
            freq = scaled_frequencies(
                scaling, self.width, self.config.rope_base, positions.device, length
            )
            tables[length] = Reread(freq, self.config.pairs)
        return lengths, tables

    def _scores(
        self, lengths: Tensor, tables: dict[int, Reread], q: Tensor, k: Tensor, block: Block
    ) -> Tensor:
        here = lengths[:, block.start : block.stop]
        return scores_by_length(tables, here, q, k, block)


class GeneralRotary(PreciseParameters):
    """Queries and keys turn by `exp(n B)`, B a skew matrix that each head of keys learns."""

    precise = ("generator",)
    learning_rates: ClassVar[dict[str, float]] = {"generator": 1.0}  # and no weight decay

    def __init__(self, config: AttentionConfig, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.generator = nn.Parameter(torch.empty(config.kv_heads, width, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin as RoPE."""
        freq = frequencies("rope", self.width, self.config.rope_base, self.generator.device)
        with torch.no_grad():
            self.generator.copy_(block_generator(freq, self.config.pairs))

    def forward(self, q: Tensor, k: Tensor, positions: Tensor, layout: Layout) -> Encoded:
        """Rotate both."""
        most = layout.shared(
            ("general rotation", self.config.random_positions),
            lambda: int(positions.max()) if positions.numel() else 0,
        )
        skew = self.generator - self.generator.mT
        with torch.autocast(q.device.type, enabled=False):
            powers = turns(skew, max(most.bit_length(), 1))
            shared = self.config.num_heads // self.config.kv_heads
            of_q = [power.repeat_interleave(shared, 0) for power in powers]
            return turned_by(q, positions, of_q), turned_by(k, positions, powers), PLAIN


class FixedBias(nn.Module):
    """ALiBi and Sandwich: scores lose by a function of distance that learns nothing."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, q: Tensor, k: Tensor, positions: Tensor, layout: Layout) -> Encoded:
        """Queries and keys stay; the bias is the rule."""
        config = self.config
        name = config.position, config.num_heads
        if positions is layout.positions:
            return q, k, Rule(bias=self._bias, bias_name=name)
        name = (*name, config.random_positions)
        return q, k, Rule(bias=self._bias, bias_name=name, positions=positions)

    def _bias(self, distance: Float[Tensor, "rows queries keys"]) -> Tensor:
        H = self.config.num_heads
        if self.config.position == "sandwich":
            return bias.sandwich_bias(distance, H)
        return bias.linear_bias(distance, bias.alibi_slopes(H, distance.device))


class Kerple(PreciseParameters):
    """Biases that learn two numbers of each head, both positive."""

    precise = ("log_scale", "shape")

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.log_scale = nn.Parameter(torch.empty(config.num_heads))
        self.shape = nn.Parameter(torch.empty(config.num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in (0, 1) and (0, 2), as the official code: of exponent and scale the larger."""
        for parameter in (self.log_scale, self.shape):
            nn.init.uniform_(parameter, 1e-2, 1)
        with torch.no_grad():
            if self.config.position == "kerple_power":  # scale in (0, 1), exponent in (0, 2)
                self.shape.logit_(1e-2)
            else:  # scale in (0, 2), rate in (0, 1)
                self.log_scale.mul_(2)
                self.shape.log_()
            self.log_scale.log_()

    def forward(self, q: Tensor, k: Tensor, positions: Tensor, layout: Layout) -> Encoded:
        """Queries and keys stay; the bias is the rule."""
        other = None if positions is layout.positions else positions
        return q, k, Rule(bias=self._bias, positions=other)

    def _bias(self, distance: Float[Tensor, "rows queries keys"]) -> Tensor:
        scale = self.log_scale.exp()
        if self.config.position == "kerple_power":
            return bias.power_bias(distance, scale, 2 * self.shape.sigmoid())
        return bias.log_bias(distance, scale, self.shape.exp())
