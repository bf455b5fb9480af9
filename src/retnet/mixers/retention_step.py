"""One token of gated retention at a time, with a buffer of the last tokens before the state.

The same function as the recurrent form, arranged for few and small operations: a step of a small
model costs as much in calls as in arithmetic.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops import Layout
from retnet.ops.retention.buffered import CAPACITY, Buffer, buffered_step, empty_buffer, settle
from retnet.ops.retention.initial import initial_output
from retnet.ops.retention.normalizers import squared_decay_norm
from retnet.ops.rotation import rotation_tables

if TYPE_CHECKING:
    from retnet.mixers.retention import Retention


class OpenedRetention(NamedTuple):
    """A retention state made for steps; a value like the plain one.

    Attributes:
        buffer: the state and the tokens since it was last written.
        cos: of the buffer's CAPACITY places; None until the first of them is known.
        sin: likewise.
    """

    buffer: Buffer
    cos: Float[Tensor, "B places 2 H *pair"] | None = None
    sin: Float[Tensor, "B places 2 H *pair"] | None = None


def retention_step(
    mixer: "Retention", x: Float[Tensor, "B 1 D"], opened: OpenedRetention, layout: Layout
) -> tuple[Float[Tensor, "B 1 D"], OpenedRetention]:
    """Project, rotate, mix, normalise, gate, project: `Retention.forward` for one token."""
    assert x.shape[1] == 1, x.shape
    assert layout.valid is None
    assert layout.starts is None
    buffer, cos, sin = opened
    if buffer.is_full:
        buffer = empty_buffer(settle(buffer, mixer.log_decays))
    place = buffer.k.shape[2]
    if place == 0:
        cos, sin = layout.shared(
            ("retention_step", mixer.config, mixer.D_k, buffer.S.dtype),
            lambda: _tables(mixer, layout, len(x), buffer.S.dtype),
        )
    assert cos is not None
    assert sin is not None
    q, k, v, *g = mixer.inward(mixer, x[:, 0])
    q, k = _turn(torch.cat((q, k), -1).to(buffer.S.dtype), cos[:, place], sin[:, place], mixer)
    v = v.to(buffer.S.dtype).view(len(x), mixer.config.num_heads, mixer.D_v)
    o, buffer = buffered_step(q, k, v, mixer.log_decays, buffer)
    if mixer.initial_S is not None:
        log_decay = mixer.log_decay(layout, x.device)
        o = o + initial_output(q[:, None], log_decay, mixer.initial_S, layout)[:, 0]
    y = mixer.normalize_and_gate(o, None, *(gate.view(o.shape) for gate in g)).to(x.dtype)
    return mixer.outward(mixer, y.flatten(1))[0][:, None], OpenedRetention(buffer, cos, sin)


def turning_tables(
    mixer: "Retention", layout: Layout
) -> tuple[Float[Tensor, "rows places 2 H pairs"], ...]:
    """Cosines and sines that a buffer's queries and keys are turned by, with their factors.

    These are the scale of k, and 1 / c_n for q: retention is linear in q, so dividing it by c_n is
    dividing o. In float64; where nothing rotates there is one pair, with a sine of zero.
    """
    config, positions = mixer.config, layout.positions
    places = positions + torch.arange(CAPACITY, device=positions.device)  # rows places
    scale = torch.full_like(places, mixer.D_k**-0.5, dtype=torch.float64)
    factor = scale[..., None, None].repeat(1, 1, 2, config.num_heads)  # rows places 2 H
    factor[:, :, 0] = 1.0
    if config.score_norm != "none":
        log_decay = mixer.log_decay(layout, positions.device)
        factor[:, :, 0] = squared_decay_norm(places, log_decay).rsqrt()
    if config.theta == "none":
        return factor[..., None], torch.zeros_like(factor[..., None])
    cos, sin = rotation_tables(places, config.theta, mixer.D_k, torch.float64)
    return cos[:, :, None] * factor[..., None], sin[:, :, None] * factor[..., None]


def _tables(
    mixer: "Retention", layout: Layout, batch: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`turning_tables` in the shape of channels in pairs, and the sine with the sign of its term.

    That is `(a cos - b sin, b cos + a sin)`.
    """
    cos, sin = turning_tables(mixer, layout)
    interleaved = mixer.config.pairs == "interleaved" and mixer.config.theta != "none"
    shape = (cos.shape[-1], 1) if interleaved else (1, cos.shape[-1])
    cos, sin = cos.unflatten(-1, shape), sin.unflatten(-1, shape)
    sin = torch.cat((-sin, sin), -1 if interleaved else -2)
    cos, sin = (table.to(dtype).expand(batch, *table.shape[1:]) for table in (cos, sin))
    return cos, sin


def _turn(
    qk: Float[Tensor, "B all_heads"], cos: Tensor, sin: Tensor, mixer: "Retention"
) -> tuple[Float[Tensor, "B H D_k"], ...]:
    """Queries and keys turned together; the other channel of each pair is its flip."""
    interleaved = mixer.config.pairs == "interleaved"
    if mixer.config.theta == "none":  # nothing turns, and D_k may be odd
        x = qk.view(len(qk), 2, mixer.config.num_heads, mixer.D_k)
        return (x * cos[..., 0]).unbind(1)
    half = mixer.D_k // 2
    pairs = (half, 2) if interleaved else (2, half)
    x = qk.view(len(qk), 2, mixer.config.num_heads, *pairs)
    turned = torch.addcmul(x * cos, x.flip(-1 if interleaved else -2), sin)
    return turned.view(len(qk), 2, mixer.config.num_heads, mixer.D_k).unbind(1)
