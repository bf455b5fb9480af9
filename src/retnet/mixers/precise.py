"""Parameters that stay float32 whatever dtype the model is cast to."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn


class PreciseParameters(nn.Module):
    """A module whose named parameters are never cast below float32.

    A decay per token of 0.9999 is 1.0 in bfloat16, and a phase of a thousand turns has no fraction
    left, so the parameters behind them keep their digits under `model.to(dtype)` and `half()`.

    Attributes:
        precise: names of the module's own parameters that this holds for; some may be None.

    Example:
        >>> class Decay(PreciseParameters):
        ...     precise = ("log_rate",)
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.log_rate = nn.Parameter(torch.tensor([-9.001]))
        >>> Decay().bfloat16().log_rate.dtype
        torch.float32
    """

    precise: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        own = {name: getattr(self, name) for name in self.precise}
        before = {name: x.detach() for name, x in own.items() if x is not None}
        super()._apply(fn, recurse)
        for name, kept in before.items():
            parameter = getattr(self, name)
            if parameter.dtype.itemsize < torch.float32.itemsize:
                wide = torch.promote_types(kept.dtype, torch.float32)
                parameter.data = kept.to(parameter.device, wide)
        return self
