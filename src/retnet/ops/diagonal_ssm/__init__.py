"""Diagonal state-space systems, each with one input and one output."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.nn import functional as F

from retnet.ops.layout import Layout
from retnet.ops.long_conv import long_conv
from retnet.ops.scan import linear_recurrence
from retnet.types import Form


class DiagonalSSM(NamedTuple):
    """Systems `h_t = exp(log_a) h_(t-1) + b u_t`, `y_t = 2 Re(c . h_t)`, one per head.

    The N states of a head are one of each conjugate pair of 2 N states, hence the 2 and Re.
    """

    log_a: Complex[Tensor, "H N"]
    b: Complex[Tensor, "H N"]
    c: Complex[Tensor, "H N"]


def zero_order_hold(
    A: Complex[Tensor, "H N"], B: Complex[Tensor, "H N"], C: Complex[Tensor, "H N"], step: Tensor
) -> DiagonalSSM:
    """The system `dh/dt = A h + B u`, `y = 2 Re(C . h)`, its input constant for each `step`."""
    change = A * step
    return DiagonalSSM(change, B * torch.expm1(change) / A, C)


def bilinear(
    A: Complex[Tensor, "H N"], B: Complex[Tensor, "H N"], C: Complex[Tensor, "H N"], step: Tensor
) -> DiagonalSSM:
    """The same system by the trapezoidal rule, `a = (1 + A step / 2) / (1 - A step / 2)`."""
    half = A * (step / 2)
    return DiagonalSSM(torch.log1p(half) - torch.log1p(-half), B * step / (1 - half), C)


def diagonal_ssm(
    u: Float[Tensor, "B T H E"],
    ssm: DiagonalSSM,
    state: Float[Tensor, "B H E N 2"] | None = None,
    *,
    length: Int[Tensor, " B"] | None = None,
    form: Form = "chunkwise",
) -> tuple[Float[Tensor, "B T H E"], Float[Tensor, "B H E N 2"]]:
    """Pass E signals through each head's system. See README.md for the maths.

    `recurrent` is the definition, which keeps h of all tokens. `parallel` and `chunkwise` are one:
    a convolution with the systems' impulse response by FFT, the response to the state that enters,
    and the state after in closed form; none of them keeps an h per token.

    Args:
        u: the signals.
        ssm: the systems, stable: Re log_a <= 0 is not checked here.
        state: h after the last token seen, real and imaginary part; None at the start.
        length: tokens of each row, the first ones, after which the state is wanted; None for all.
        form: how to compute it.

    Returns:
        y, and h after the last token; float32 or better. What y is after `length` tokens of a row
        is of no use.

    Source:
        Gu et al. 2022, arXiv:2206.11893.

    Example:
        >>> import torch
        >>> half = torch.full((1, 1), 0.5 + 0j)
        >>> ssm = DiagonalSSM(half.log(), torch.ones_like(half), half)
        >>> u = torch.tensor([1.0, 0.0, 4.0]).view(1, 3, 1, 1)
        >>> y, _ = diagonal_ssm(u, ssm, form="recurrent")
        >>> y.flatten().tolist()
        [1.0, 0.5, 4.25]
    """
    with torch.autocast(u.device.type, enabled=False):
        u = u.to(torch.promote_types(u.dtype, torch.float32))
        h = None if state is None else torch.view_as_complex(state)
        compute = _recurrent if form == "recurrent" else _convolved
        y, h = compute(u, ssm, h, length)
        return y, torch.view_as_real(h.contiguous())


class StepTables(NamedTuple):
    """What one token after another is multiplied with, once computed: exponentials cost most."""

    a: Complex[Tensor, "H N"]
    b: Complex[Tensor, "H N"]
    c: Complex[Tensor, "H N"]  # of Re, so twice that of the system


def step_tables(ssm: DiagonalSSM) -> StepTables:
    """The systems as single tokens need them."""
    return StepTables(ssm.log_a.exp(), ssm.b, 2 * ssm.c)


def ssm_step(
    u: Float[Tensor, "B 1 H E"], tables: StepTables, state: Float[Tensor, "B H E N 2"]
) -> tuple[Float[Tensor, "B 1 H E"], Float[Tensor, "B H E N 2"]]:
    """`diagonal_ssm` of one token, without gradients."""
    a, b, c = (table[:, None] for table in tables)  # H 1 N
    h = a * torch.view_as_complex(state) + b * u[:, 0, ..., None].to(state.dtype)
    return (h * c).real.sum(-1)[:, None], torch.view_as_real(h)


def impulse_response(ssm: DiagonalSSM, T: int) -> Float[Tensor, "H T"]:
    """`y_0 ... y_(T-1)` of the input 1, 0, 0, ...: `2 Re sum_n c_n b_n a_n^t`."""
    powers = _Powers(ssm.log_a, T)
    heads = (ssm.c * ssm.b)[:, None, None, None, :]  # one batch row and one signal
    return powers.outputs(heads)[:, 0, 0, :T]


def after_flops(T: int, N: int) -> int:
    """Per token and signal, of the product that gives the state after T tokens."""
    chunk, chunks = _split(T)
    return 2 * 2 * N * chunk * chunks // T


def _recurrent(
    u: Tensor, ssm: DiagonalSSM, h: Tensor | None, length: Tensor | None
) -> tuple[Tensor, Tensor]:
    layout = None if length is None else Layout.from_lengths(length, u.shape[1])
    E, N = u.shape[3], ssm.b.shape[1]
    a = ssm.log_a.exp()[:, None].expand(-1, E, N)
    states, h = linear_recurrence(
        a, u[..., None] * ssm.b[:, None], h, layout=layout, form="recurrent"
    )
    return 2 * (states * ssm.c[:, None]).sum(-1).real, h


def _convolved(
    u: Tensor, ssm: DiagonalSSM, h: Tensor | None, length: Tensor | None
) -> tuple[Tensor, Tensor]:
    T = u.shape[1]
    powers = _Powers(ssm.log_a, T)
    y = long_conv(u, impulse_response(ssm, T).mT[..., None])
    u = u.permute(2, 0, 3, 1)  # H B E T
    if length is not None:  # the last token of each row at the end, nothing before the first
        source = torch.arange(T, device=u.device) - (T - length[:, None])  # B T
        u = u.gather(-1, source.clamp(min=0)[:, None].expand_as(u))
        u = u.masked_fill((source < 0)[:, None], 0)
    after = powers.sums(u) * ssm.b[:, None, None]  # H B E N
    if h is not None:
        h = h.permute(1, 0, 2, 3)  # H B E N
        a, c = ssm.log_a.exp()[:, None, None], ssm.c[:, None, None]
        y = y + powers.outputs((c * a * h)[..., None, :])[..., :T].permute(1, 3, 0, 2)
        tokens = T if length is None else length[:, None, None]  # B 1 1
        after = after + (ssm.log_a[:, None, None] * tokens).exp() * h
    return y, after.transpose(0, 1)


def _split(T: int) -> tuple[int, int]:
    """Tokens of a chunk, a power of two near sqrt(T), and chunks."""
    chunk = 1 << (math.isqrt(T - 1) + 1).bit_length() - 1
    return chunk, -(-T // chunk)


class _Powers:
    """a^t for t < T as the product of two short tables: t = m chunk + i."""

    def __init__(self, log_a: Tensor, T: int) -> None:
        self.chunk, self.chunks = _split(T)
        steps = torch.arange(max(self.chunk, self.chunks), device=log_a.device)
        self.within = _exp(log_a[:, None] * steps[: self.chunk, None])  # H C N
        self.between = _exp(log_a[:, None] * (self.chunk * steps[: self.chunks, None]))  # H M N

    def outputs(self, x: Tensor) -> Tensor:
        """`2 Re sum_n x_n a_n^t` for each t, (H, B, E, M C), of x as (H, B, E, 1, N)."""
        H, B, E = x.shape[:3]
        left = (x * self.between[:, None, None]).conj()  # H B E M N
        y = _as_real(left).flatten(1, 3) @ _as_real(self.within).mT  # H B*E*M C
        return 2 * y.view(H, B, E, self.chunks * self.chunk)

    def sums(self, u: Tensor) -> Tensor:
        """`sum_t a_n^(T-1-t) u_t`, (H, B, E, N), of u as (H, B, E, T)."""
        H, B, E, T = u.shape
        u = F.pad(u, (self.chunk * self.chunks - T, 0))
        sums = u.reshape(H, -1, self.chunk) @ _as_real(self.within.flip(1))  # H B*E*M 2N
        sums = torch.view_as_complex(sums.view(H, B, E, self.chunks, self.within.shape[-1], 2))
        return (sums * self.between.flip(1)[:, None, None]).sum(-2)


def _exp(x: Tensor) -> Tensor:
    """Of complex numbers; PyTorch's own takes three times as long on CPUs."""
    return torch.polar(x.real.exp(), x.imag)


def _as_real(x: Tensor) -> Tensor:
    """(..., N) complex to (..., 2 N)."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2)
