"""What a token shift keeps while a program steps it: the token before, and all since."""

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.mixers.branch import ROOM


def open_past(shift: Float[Tensor, "B D"]) -> Float[Tensor, "B places D"]:
    """Room for tokens after this one."""
    past = shift.new_zeros(len(shift), ROOM + 1, shift.shape[1], dtype=torch.float32)
    past[:, 0] = shift
    return past


def close_past(past: Float[Tensor, "B places D"], used: int) -> Float[Tensor, "B D"]:
    """The last of the first `used` tokens, or the one before them."""
    return past[:, used].clone()
