"""Linear recurrences with a diagonal matrix, real or complex, in three forms."""

import torch
from jaxtyping import Inexact
from torch import Tensor

from retnet.ops.layout import Layout
from retnet.ops.scan.forms import FORMS
from retnet.types import Form


def linear_recurrence(
    a: Inexact[Tensor, "..."],
    b: Inexact[Tensor, "B T *N"],
    state: Inexact[Tensor, " B *N"] | None = None,
    *,
    layout: Layout | None = None,
    form: Form = "chunkwise",
) -> tuple[Inexact[Tensor, "B T *N"], Inexact[Tensor, " B *N"]]:
    """Compute `h_t = a_t h_(t-1) + b_t` of each row and channel.

    Every form computes this same function; they differ in cost only. Differentiable once in a, b
    and state. Nothing is ever divided by a product of a's, so small and zero a's are exact.

    Args:
        a: a factor of each channel, (*N), or of each token as well, (B, T, *N). Its values are not
            checked here: where one is larger than 1, h grows as it must.
        b: what each token adds; N is any number of axes.
        state: h after the last token seen; None, which is zero, at the start of a sequence.
        layout: padding and document starts of this call; None when there are none.
        form: how to compute it; never replaced silently by another.

    Returns:
        h of every token, which at padding is that of the token before it, and h after the last
        token. Both in the dtype that a and b promote to, float32 or complex64 at least.

    Raises:
        ValueError: sizes, dtypes or devices do not fit each other, there is no such form (the
            message lists those there are), or the layout's rows are spread over ranks.

    Source:
        Martin and Cundy 2018, arXiv:1709.04057; derivation in this folder's README.

    Example:
        >>> import torch
        >>> h, state = linear_recurrence(torch.tensor([0.5]), torch.ones(1, 3, 1))
        >>> h.flatten().tolist(), state.flatten().tolist()
        ([1.0, 1.5, 1.75], [1.75])
    """
    if form not in FORMS:
        raise ValueError(
            f'linear_recurrence has no form "{form}"; choose one of {", ".join(FORMS)}'
        )
    _check(a, b, state, layout)
    with torch.autocast(b.device.type, enabled=False):  # the state must not fall to half precision
        dtype = exact_dtype(a.dtype, b.dtype)
        a, b = a.to(dtype), b.to(dtype)
        if layout is not None:
            a, b = _masked(a, b, layout)
        if state is None:
            state = b.new_zeros(b.shape[0], *b.shape[2:])
        return FORMS[form](a, b, state)


def exact_dtype(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The dtype that h is computed in: what both promote to, float32 at least."""
    return torch.promote_types(torch.promote_types(a, b), torch.float32)


def _masked(a: Tensor, b: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Factors of each token that hold h at padding and forget it at a document's start."""
    valid, starts = (
        None if mask is None else mask[(..., *[None] * (b.ndim - 2))]
        for mask in (layout.valid, layout.starts)
    )
    if starts is not None:
        a = torch.where(starts, 0.0, a)
    if valid is not None:
        a, b = torch.where(valid, a, 1.0), torch.where(valid, b, 0.0)
    return (a if valid is None and starts is None else a.expand_as(b)), b


def _check(a: Tensor, b: Tensor, state: Tensor | None, layout: Layout | None) -> None:
    """Refuse metadata that does not fit; values are not looked at."""
    if b.ndim < 2 or b.shape[1] == 0:
        raise ValueError(f"b has shape {tuple(b.shape)}; it must be (B, T, *N) with T at least 1")
    B, T, *N = b.shape
    if a.shape not in (b.shape, b.shape[2:]):
        raise ValueError(
            f"a has shape {tuple(a.shape)}; beside b {tuple(b.shape)} it must be (*N) = "
            f"{tuple(N)}, a factor of each channel, or (B, T, *N), one of each token"
        )
    for name, tensor in (("a", a), ("b", b)):
        if not (tensor.dtype.is_floating_point or tensor.dtype.is_complex):
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be floating or complex")
    if state is not None:
        if state.shape != (B, *N):
            raise ValueError(
                f"state has shape {tuple(state.shape)}; it must be (B, *N) = {(B, *N)}"
            )
        if state.dtype != exact_dtype(a.dtype, b.dtype):
            raise ValueError(
                f"state has dtype {state.dtype}; for a of {a.dtype} and b of {b.dtype} it must be "
                f"{exact_dtype(a.dtype, b.dtype)}: keep states in the dtype they came in"
            )
    others = {"a": a, "state": state}
    if layout is not None:
        if layout.spread is not None:
            raise ValueError(
                "linear_recurrence does not pass states between ranks, so its rows must not be "
                "spread over several (sequence); run them whole (train.sequence_ranks = 1)"
            )
        others |= {"layout.valid": layout.valid, "layout.starts": layout.starts}
        for name, mask in (("valid", layout.valid), ("starts", layout.starts)):
            if mask is not None and mask.shape != (B, T):
                raise ValueError(
                    f"layout.{name} has shape {tuple(mask.shape)}; it must be (B, T) = ({B}, {T})"
                )
    for name, tensor in others.items():
        if tensor is not None and tensor.device != b.device:
            raise ValueError(
                f"{name} is on {tensor.device} and b on {b.device}; move them to one device"
            )


__all__ = ["linear_recurrence"]
