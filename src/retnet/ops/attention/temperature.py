"""Scales of the scores that grow with the number of keys."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

LogN = Literal["none", "always", "beyond"]


def log_n_scale(
    num_keys: Int[Tensor, "rows T"], train_len: int, rule: LogN
) -> Float[Tensor, "rows T"]:
    """`log n / log N`, float64: a softmax over more keys is sharpened as much as it is flattened.

    `always` for models trained with it; `beyond` is at least 1, for models that were not. n counts
    the keys that a query sees, N those at the end of a text in training.

    Source:
        Su 2021, kexue.fm/archives/8823.
    """
    assert rule != "none"
    n = num_keys.clamp(min=1).double()
    scale = n.log() / torch.tensor(float(train_len), dtype=n.dtype, device=n.device).log()
    return scale if rule == "always" else scale.clamp(min=1)
