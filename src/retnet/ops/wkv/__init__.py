"""WKV: an exponentially decayed mean of values, weighted by the exponentials of keys (RWKV-4)."""

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops.layout import Layout
from retnet.ops.wkv.definition import parallel
from retnet.ops.wkv.states import (
    NOTHING,
    WKVState,
    check_state,
    exact,
    fresh_state,
    from_scaled_sums,
    to_scaled_sums,
)
from retnet.ops.wkv.torch_backend import Masks, step, walk
from retnet.types import Backend, Form


def wkv(
    k: Float[Tensor, "B T A"],
    v: Float[Tensor, "B T A"],
    time_decay: Float[Tensor, " A"],
    time_first: Float[Tensor, " A"],
    state: WKVState | None = None,
    *,
    layout: Layout | None = None,
    form: Form | None = None,
    backend: Backend | None = None,
) -> tuple[Float[Tensor, "B T A"], WKVState]:
    """Average the values of each channel, with weights from its keys that decay with time.

    With `w = -exp(time_decay)`, the weight of token i in the mean at t is `e^(k_i + (t-1-i) w)` for
    i < t and `e^(k_t + time_first)` for t itself. Keys of any size are safe. Every form computes
    this same function; they differ in cost only. Differentiable once in all of k, v, time_decay,
    time_first and the state's mean and log_mass.

    Args:
        k: logarithms of weights.
        v: values, in k's dtype.
        time_decay: the raw parameter, logarithm of how much a weight's logarithm falls per token.
        time_first: what the current token's weight has instead of a decay.
        state: after the last token seen; None at the start of a sequence.
        layout: padding and document starts of this call; None when there is nothing of the kind.
        form: how to compute it. `recurrent` takes token by token, `chunkwise` blocks of tokens side
            by side, `parallel` writes the definition out, with memory of T^2 A. None takes
            whichever of the first two is faster on inputs of this size.
        backend: who computes it; there is `torch` only.

    Returns:
        y in v's dtype, zero at padding, and the state after the last token, float32 (float64 for
        float64 inputs).

    Raises:
        ValueError: sizes or dtypes do not fit, or there is no such form and backend.

    Source:
        Peng et al. 2023, arXiv:2305.13048, section 3.1.2; derivation in this folder's README.

    Example:
        >>> import torch
        >>> k, v = torch.zeros(1, 3, 1), torch.tensor([[[1.0], [4.0], [7.0]]])
        >>> d = torch.tensor([-100.0])  # nothing decays
        >>> wkv(k, v, d, torch.zeros(1))[0].flatten().tolist()
        [1.0, 2.5, 4.0]
    """
    if backend not in (None, "torch") or form not in (None, "parallel", "recurrent", "chunkwise"):
        raise ValueError(
            f"wkv has no {backend}/{form}; choose one of torch/parallel, torch/recurrent, "
            "torch/chunkwise"
        )
    _check(k, v, time_decay, time_first, layout)
    if state is None:
        state = fresh_state(k)
    check_state(state, k)
    if k.shape[1] == 0:
        return v, state
    valid = None if layout is None else layout.valid
    starts = None if layout is None else layout.starts
    if layout is not None and layout.spread is not None:
        raise ValueError(
            "wkv cannot read rows that are spread over several processes; run them whole "
            "(train.sequence_ranks = 1)"
        )
    log_decay = -time_decay.to(exact(k.dtype)).exp()
    first = time_first.to(exact(k.dtype))
    some = (state.seen > 0)[:, None]
    log_mass = state.log_mass.where(some, NOTHING)
    with torch.autocast(k.device.type, enabled=False):
        if form == "parallel":
            y, mean, log_mass = parallel(
                k, v, log_decay, first, state.mean, log_mass, valid, starts
            )
        else:
            y, mean, log_mass = walk(
                *(k, v, log_decay, first, state.mean, log_mass), Masks(valid, starts), form
            )
    seen = torch.ones_like(state.seen)
    if valid is not None:
        seen = torch.maximum(state.seen, valid.any(1).to(seen.dtype))
        some = (seen > 0)[:, None]
        mean, log_mass = mean.where(some, 0.0), log_mass.where(some, 0.0)
        y = y.where(valid[..., None], 0.0)
    return y, WKVState(mean, log_mass, seen)


def _check(
    k: Tensor, v: Tensor, time_decay: Tensor, time_first: Tensor, layout: Layout | None
) -> None:
    """Refuse metadata that does not fit; values are not looked at."""
    if k.ndim != 3 or v.shape != k.shape:
        raise ValueError(
            f"k and v have shapes {tuple(k.shape)} and {tuple(v.shape)}; both must be (B, T, A)"
        )
    if not k.dtype.is_floating_point or v.dtype != k.dtype:
        raise ValueError(
            f"k and v have dtypes {k.dtype} and {v.dtype}; they must share one floating dtype"
        )
    B, T, A = k.shape
    for name, parameter in (("time_decay", time_decay), ("time_first", time_first)):
        if parameter.shape != (A,):
            raise ValueError(
                f"{name} has shape {tuple(parameter.shape)}; it must be (A,) = ({A},), "
                "one number for each channel"
            )
    for name in ("valid", "starts"):
        mask = None if layout is None else getattr(layout, name)
        if mask is not None and mask.shape != (B, T):
            raise ValueError(
                f"layout.{name} has shape {tuple(mask.shape)}; it must be (B, T) = ({B}, {T})"
            )


__all__ = ["NOTHING", "WKVState", "from_scaled_sums", "step", "to_scaled_sums", "wkv"]
