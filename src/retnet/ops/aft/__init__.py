"""Attention without queries' scores: means of values that each channel weighs by its own keys."""

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.ops.aft.full import aft_full
from retnet.ops.aft.local import AFTLocalState, aft_local
from retnet.ops.layout import Layout
from retnet.ops.wkv import WKVState, wkv
from retnet.types import Form


def aft_simple(
    k: Float[Tensor, "B T A"],
    v: Float[Tensor, "B T A"],
    state: WKVState | None = None,
    *,
    layout: Layout | None = None,
    form: Form | None = None,
) -> tuple[Float[Tensor, "B T A"], WKVState]:
    """Mean of all values so far, weighted by e^k: RWKV's mean without decay and bonus.

    Args:
        k: logarithms of weights, of any size.
        v: values.
        state: after the last token; None at the start of a sequence.
        layout: padding and document starts.
        form: of `wkv`.

    Returns:
        The means in v's dtype, zero at padding, and the state after the last token.

    Raises:
        ValueError: what `wkv` raises.

    Source:
        Zhai et al. 2021, arXiv:2105.14103, section 3.2.

    Example:
        >>> import torch
        >>> k, v = torch.zeros(1, 3, 1), torch.tensor([[[1.0], [4.0], [7.0]]])
        >>> aft_simple(k, v)[0].flatten().tolist()
        [1.0, 2.5, 4.0]
    """
    zero = torch.zeros(k.shape[2], device=k.device)
    return wkv(k, v, zero - torch.inf, zero, state, layout=layout, form=form)


__all__ = ["AFTLocalState", "aft_full", "aft_local", "aft_simple"]
