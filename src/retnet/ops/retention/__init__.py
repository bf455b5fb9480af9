"""Retention: an exponentially decayed sum of outer products, in three forms."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops.layout import Layout
from retnet.ops.retention import backends
from retnet.ops.retention.arguments import check
from retnet.ops.retention.spread import over_ranks
from retnet.ops.retention.step import retention_step_
from retnet.types import Backend, Form


def retention(  # noqa: PLR0913  (the op's whole contract; a config would hide it)
    q: Float[Tensor, "B T H D_k"],
    k: Float[Tensor, "B T H D_k"],
    v: Float[Tensor, "B T H D_v"],
    log_decay: Float[Tensor, " H"],
    state: Float[Tensor, "B H D_k D_v"] | None = None,
    *,
    layout: Layout | None = None,
    form: Form = "chunkwise",
    backend: Backend | None = None,
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, "B T H D_v"], Float[Tensor, "B H D_k D_v"]]:
    """Mix tokens with an exponentially decayed sum of outer products.

    `S_n = exp(log_decay) S_(n-1) + k_n v_n^T` and `o_n = S_n^T q_n`, for each row and head.
    Every form computes this same function; they differ in cost only. Differentiable once in
    q, k, v and state.

    Args:
        q: queries, rotated and scaled by the caller.
        k: keys, likewise.
        v: values.
        log_decay: natural logarithm of each head's decay per token, in (-inf, 0]; its values are
            not checked here and it receives no gradient.
        state: S after the last token seen, float32 (float64 for float64 inputs); None at the
            start of a sequence.
        layout: padding and document starts of this call, and the ranks if these tokens are a
            slice of longer rows: `state` and the S returned are then those before and after the
            whole rows. None when there is nothing of the kind.
        form: how to compute it; never replaced silently by another.
        backend: who computes it; None means `triton` where it is installed and takes such inputs
            on such a GPU, else `torch`, and is logged once.
        chunk_size: tokens of one chunk of the chunkwise form; None chooses by the head widths. A
            power of two for `triton`.

    Returns:
        o in q's dtype, zero at padding, and S after the last token, float32 (float64 for
        float64 inputs).

    Raises:
        ValueError: ranks, sizes, dtypes or devices do not fit, there is no such form and backend
            (the message lists those there are), or the backend does not take such inputs.

    Source:
        Sun et al. 2023, arXiv:2307.08621, section 2; derivation in this folder's README.

    Example:
        >>> import torch
        >>> q = k = v = torch.ones(1, 3, 1, 1)
        >>> retention(q, k, v, torch.tensor([0.5]).log())[0].flatten().tolist()
        [1.0, 1.5, 1.75]
    """
    compute = backends.compute(backends.resolve(backend, form, q, v), form)
    check(q, k, v, log_decay, state, layout)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size ({chunk_size}) must be at least 1; leave it out to choose")
    extra = {"chunk_size": chunk_size} if form == "chunkwise" else {}
    compute = partial(compute, **extra)
    with torch.autocast(q.device.type, enabled=False):  # the state must not fall to half precision
        if layout is not None and layout.spread is not None:
            return over_ranks(compute, q, k, v, log_decay, state, layout, layout.spread)
        return compute(q, k, v, log_decay, state, layout)


__all__ = ["retention", "retention_step_"]
