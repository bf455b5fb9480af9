"""Causal convolution with a kernel of any length.

    o_n = Σ_(j<=n) kernel_(n-j) u_j

By definition, O(T) per output (`direct`), or as a product of spectra, O(log T) per output (`fft`).
Signals of at most S samples whose spectra have S' >= 2 S - 1 samples convolve without wrapping
around. The spectrum is of float32 or better, whatever dtype the model has: sums of T terms would
have no digits left in half precision.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

ConvForm = Literal["fft", "direct"]
"""How a convolution is computed."""


def long_conv(
    u: Float[Tensor, "B T *channels"],
    kernel: Float[Tensor, "K *#channels"],
    past: Float[Tensor, "B slots *channels"] | None = None,
    *,
    count: Int[Tensor, " B"] | None = None,
    form: ConvForm = "fft",
) -> Float[Tensor, "B T *channels"]:
    """Convolve each channel with its kernel, `o_n = sum_(j<=n) kernel_(n-j) u_j`.

    Differentiable in u, kernel and past.

    Args:
        u: the signal's new samples.
        kernel: its response to 1, 0, 0, ...; taken to be zero after K samples.
        past: the signal before `u`, oldest first; None for a signal that begins with `u`.
        count: how many slots of the past, from the first on, each row uses; None for all of them.
        form: how to compute it.

    Returns:
        o for the new samples, of the wider of the dtypes of u and kernel, float32 at least.

    Raises:
        ValueError: there is no such form.

    Example:
        >>> import torch
        >>> u, kernel = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([4.0, 2.0, 1.0])
        >>> long_conv(u[..., None], kernel[:, None]).flatten().round().tolist()
        [4.0, 2.0, 9.0]
    """
    if form not in FORMS:
        raise ValueError(f"long_conv has no {form}; choose one of {', '.join(FORMS)}")
    dtype = torch.promote_types(torch.promote_types(u.dtype, kernel.dtype), torch.float32)
    with torch.autocast(u.device.type, enabled=False):
        u, kernel = u.to(dtype), kernel.to(dtype)
        T = u.shape[1]
        if past is None:
            return FORMS[form](u, kernel)
        past = past.to(dtype)
        if T == 1:
            return _newest(u, kernel, past, count)
        if count is None:
            return FORMS[form](torch.cat([past, u], 1), kernel)[:, past.shape[1] :]
        o = FORMS[form](joined(past, u, count), kernel)
        new = count[:, None] + torch.arange(T, device=u.device)  # B T
        return o.gather(1, _expanded(new, u))


def joined(
    past: Shaped[Tensor, "B slots *channels"],
    new: Shaped[Tensor, "B T *channels"],
    count: Int[Tensor, " B"],
) -> Shaped[Tensor, "B slots+T *channels"]:
    """`count` samples of each row's past, then its new ones, and zeros."""
    slots, T = past.shape[1], new.shape[1]
    slot = torch.arange(slots + T, device=new.device)  # of the result
    since = slot - count[:, None]  # B slots+T
    source = torch.where(since < 0, slot, slots + since.clamp(max=T - 1))
    both = torch.cat([past, new], 1).gather(1, _expanded(source, new))
    return both.masked_fill(_expanded(since >= T, new), 0)


def _fft(u: Tensor, kernel: Tensor) -> Tensor:
    T = u.shape[1]
    if u.numel() == 0:  # transforms refuse it
        return u.clone()
    u, kernel = u.movedim(1, -1), kernel[:T].movedim(0, -1)
    n = fast_length(2 * T)
    o = torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(kernel, n), n)
    return o[..., :T].movedim(-1, 1)


def fast_length(n: int) -> int:
    """The smallest 2^a or 3 2^a that is at least n: transforms of such lengths are fast."""
    power = 1 << (n - 1).bit_length()
    return power * 3 // 4 if power * 3 // 4 >= n and power >= 4 else power


def _direct(u: Tensor, kernel: Tensor) -> Tensor:
    T = u.shape[1]
    kernel = kernel[:T].expand(-1, *u.shape[2:]).flatten(1)  # K C
    taps = kernel.flip(0).mT[:, None]  # C 1 K: PyTorch's convolutions do not flip
    signal = F.pad(u.flatten(2).mT, (len(kernel) - 1, 0))  # B C K-1+T
    return F.conv1d(signal, taps, groups=len(taps)).mT.unflatten(2, u.shape[2:])


def _newest(u: Tensor, kernel: Tensor, past: Tensor, count: Tensor | None) -> Tensor:
    """One new sample of each row: a sum, in any form."""
    slots = past.shape[1]
    if count is None:
        known = min(slots, len(kernel) - 1)
        past, weights = past[:, slots - known :], kernel[1 : known + 1].flip(0)
    else:
        ago = count[:, None] - torch.arange(slots, device=u.device)  # B slots
        weights = kernel[ago.clamp(0, len(kernel) - 1)]
        weights = weights * _expanded((ago > 0) & (ago < len(kernel)), u)
    return u * kernel[0] + (past * weights).sum(1, keepdim=True)


def _expanded(index: Tensor, like: Tensor) -> Tensor:
    """(B, S) to (B, S, *channels)."""
    return index.view(*index.shape, *[1] * (like.ndim - 2)).expand(-1, -1, *like.shape[2:])


FORMS = {"fft": _fft, "direct": _direct}
