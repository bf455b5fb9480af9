"""Hyena: parameters around `retnet.ops.long_conv`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.mixers.branch import ALONE, Depth
from retnet.mixers.hyena_filter import HyenaFilter
from retnet.mixers.projection import JointLinear
from retnet.ops import Layout
from retnet.ops.documents import by_document, longest_document, newest, used_slots
from retnet.ops.long_conv import joined, long_conv
from retnet.ops.packed_linear import Weights
from retnet.ops.previous import previous_tokens
from retnet.types import FormChoice

SHORT = 3
"""Taps of the convolution before the gates."""


class HyenaState(NamedTuple):
    """What the convolutions still need: it grows with every token, as attention's does.

    A filter that is any function of distance has no smaller memory than all it was applied to.
    A row's first token is in slot 0 of z and so on, without gaps; unused slots are zero.
    """

    u: Float[Tensor, "B 2 W"]
    z: Float[Tensor, "B slots convs D"]


class OpenedHyena(NamedTuple):
    """A state for single tokens, which has its filters with it: they cost more than all else."""

    u: Float[Tensor, "B 2 W"]
    z: Float[Tensor, "B slots convs D"]
    kernel: Float[Tensor, "B taps convs D"]  # the same for all rows


class _Entering(NamedTuple):
    """A state, and how many of its slots each row uses."""

    u: Tensor
    z: Tensor
    used: Tensor


@dataclass(frozen=True, kw_only=True)
class HyenaConfig:
    """Hyena, gated long convolutions (Poli et al. 2023, arXiv:2302.10866).

    It has no constant-size state, and filters of `l_max` taps: a longer document is an error.
    Language models of the paper have `emb_dim` 33 and `sine_frequency` 14.

    Attributes:
        l_max: the most tokens that a document can have.
        order: how often a gate multiplies; order - 1 long convolutions lie between.
        filter_order: width of the network that gives the filters.
        emb_dim: numbers that tell it a position, odd: the position, and pairs of sine and cosine.
        sine_frequency: what the arguments of its sines are multiplied by at first.
    """

    formula: ClassVar[str] = (
        "[x₀ … v] = conv₃(x W), v ← h * (xᵢ ⊙ v) + b ⊙ xᵢ ⊙ v for i > 0, y = (x₀ ⊙ v) W_o"
    )
    cost: ClassVar[str] = "O(D log T) / O(n D) after n tokens"
    left_out: ClassVar[str] = (
        "Distillation of the filters into a state of constant size, which is another model."
    )

    l_max: int = 2048
    order: int = 2
    filter_order: int = 64
    emb_dim: int = 3
    sine_frequency: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("l_max", 2), ("order", 2), ("filter_order", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least {least}")
        if self.emb_dim < 3 or self.emb_dim % 2 == 0:
            raise ValueError(
                f"emb_dim ({self.emb_dim}) must be odd and at least 3: the position itself, and "
                "pairs of sine and cosine"
            )

    def build(self, d_model: int) -> "Hyena":
        """Make the layer for a decoder of width `d_model`."""
        return Hyena(self, d_model)


class Hyena(nn.Module):
    """The layer: project, convolve shortly, then gate and convolve by turns, project."""

    def __init__(self, config: HyenaConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.D = d_model
        self.max_tokens = config.l_max
        inner, long = d_model * (config.order + 1), d_model * (config.order - 1)
        self.in_proj = nn.Linear(d_model, inner)
        self.o_proj = nn.Linear(d_model, d_model)
        self.short = nn.Parameter(torch.empty(inner, SHORT))  # the newest token's tap is the last
        self.short_bias = nn.Parameter(torch.empty(inner))
        self.filter = HyenaFilter(long, config.l_max, config.filter_order, config.emb_dim)
        self.skip = nn.Parameter(torch.empty(long))
        self.inward = JointLinear("in_proj")
        self.outward = JointLinear("o_proj")
        self.reset_parameters(1.0)

    def reset_parameters(self, gain: float, depth: Depth = ALONE) -> None:  # noqa: ARG002
        """PyTorch's defaults for linear layers and convolutions; skips normal."""
        for proj in (self.in_proj, self.o_proj):
            proj.reset_parameters()
        with torch.no_grad():
            self.o_proj.weight.mul_(gain)
        for parameter in (self.short, self.short_bias):
            nn.init.uniform_(parameter, -(SHORT**-0.5), SHORT**-0.5)
        self.filter.reset(self.config.sine_frequency)
        nn.init.normal_(self.skip)

    def state_size(self, tokens: int) -> int:
        """Grows by order - 1 vectors with each token; see `Branch`."""
        order = self.config.order
        return ((SHORT - 1) * (order + 1) + tokens * (order - 1)) * self.D

    def flops_per_token(self, seq_len: int) -> int:  # noqa: ARG002
        """An FFT is no matrix product, and all rows share a filter; see `Branch`."""
        return 0

    def pack(self, weights: Weights) -> None:
        """Lay out the weights for steps; see `Packs`."""
        self.inward.pack(self, weights)
        self.outward.pack(self, weights)

    def open_state(self, state: HyenaState, tokens: int) -> OpenedHyena:
        """Compute the filters once; see `Steps`."""
        taps = min(state.z.shape[1] + tokens, self.config.l_max)
        return OpenedHyena(*state, self.kernel(taps).expand(len(state.u), -1, -1, -1))

    def close_state(self, opened: OpenedHyena) -> HyenaState:
        """Without the filters; see `Steps`."""
        return HyenaState(opened.u, opened.z)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: HyenaState | OpenedHyena | None,
        layout: Layout,
        form: FormChoice = "auto",
    ) -> tuple[Float[Tensor, "B T D"], HyenaState | OpenedHyena]:
        """Mix T tokens; see `Branch` for the contract.

        Recurrent is the direct sum, O(T) per token; all other forms are FFTs.

        Raises:
            ValueError: a document would be longer than `l_max`.
        """
        longest, l_max = longest_document(layout), self.config.l_max
        if longest > l_max:
            raise ValueError(
                f"a document would have {longest} tokens; Hyena's filters have l_max ({l_max}) "
                "taps and nothing to say of more: begin a new document, or train with a larger "
                "l_max"
            )
        [u] = self.inward(self, x)
        with torch.autocast(x.device.type, enabled=False):
            if isinstance(state, OpenedHyena):
                core = partial(self.mix, kernel=state.kernel[0], form=form)
                y, plain = self._in_rows(core, u, self.close_state(state), layout)
                after = OpenedHyena(*plain, state.kernel)
            else:
                slots = 0 if state is None else state.z.shape[1]
                kernel = self.kernel(min(slots + x.shape[1], l_max))
                core = partial(self.mix, kernel=kernel, form=form)
                y, after = self._in_rows(core, u, state, layout)
        return self.outward(self, y.to(x.dtype))[0], after

    def kernel(self, taps: int) -> Float[Tensor, "taps convs D"]:
        """Filters, with the skips in their first taps."""
        h = self.filter(taps)
        return (h + F.pad(self.skip[None], (0, 0, 0, taps - 1))).unflatten(1, (-1, self.D))

    def mix(
        self,
        u: Float[Tensor, "B T W"],
        state: HyenaState | _Entering | None = None,
        length: Int[Tensor, " B"] | None = None,
        *,
        kernel: Float[Tensor, "taps convs D"],
        form: FormChoice = "auto",
        after: int = 0,
    ) -> tuple[Float[Tensor, "B T D"], HyenaState]:
        """Gates and convolutions of documents, in float32 or better.

        Args:
            u: the projections.
            state: what came before; its rows may use fewer slots than there are if it says so.
            length: tokens of each row, None for all.
            kernel: the filters.
            form: how to convolve.
            after: slots of the state after, where rows differ.
        """
        u = u.to(torch.promote_types(u.dtype, torch.float32))
        past = u.new_zeros(len(u), SHORT - 1, u.shape[2]) if state is None else state.u
        (one, two), _ = previous_tokens(u, SHORT - 1, past)
        taps = self.short.to(u.dtype)
        short = u * taps[:, 2] + one * taps[:, 1] + two * taps[:, 0] + self.short_bias.to(u.dtype)
        *x, v = short.split(self.D, 2)
        count = state.used if isinstance(state, _Entering) else None
        conv_form = "direct" if form == "recurrent" else "fft"
        gated = []
        for i, gate in enumerate(reversed(x[1:])):
            v = gate * v
            gated.append(v)
            before = None if state is None else state.z[:, :, i]
            v = long_conv(v, kernel[:, i], before, count=count, form=conv_form)
        z = torch.stack(gated, 2)
        if isinstance(state, _Entering):
            z = _appended(state, z, length, after)
        elif state is not None:
            z = torch.cat([state.z, z], 1)
        return x[0] * v, HyenaState(newest(past, u, length), z)

    def _in_rows(
        self,
        core: Callable[..., tuple[Tensor, HyenaState]],
        u: Tensor,
        state: HyenaState | None,
        layout: Layout,
    ) -> tuple[Tensor, HyenaState]:
        """Mix rows that may differ in what they have read, and in padding and documents."""
        used = used_slots(layout, 0 if state is None else state.z.shape[1])
        if used is None:
            return core(u, state)
        if state is None:
            B, exact = len(u), torch.promote_types(u.dtype, torch.float32)
            last = u.new_zeros(B, SHORT - 1, u.shape[2], dtype=exact)
            z = u.new_zeros(B, 0, self.config.order - 1, self.D, dtype=exact)
            state = HyenaState(last, z)
        entering = _Entering(*state, used.expand(len(u)))
        core = partial(core, after=int(layout.next_position.max()))
        return by_document(core, u, entering, layout)


def _appended(state: _Entering, z: Tensor, length: Tensor | None, after: int) -> Tensor:
    """The used slots of each row, then `length` new ones, zeros to `after` slots."""
    if length is not None:
        unused = torch.arange(z.shape[1], device=z.device) >= length[:, None]
        z = z.masked_fill(unused[..., None, None], 0)
    slots = joined(state.z, z, state.used)[:, :after]
    return F.pad(slots, (0, 0, 0, 0, 0, after - slots.shape[1]))
