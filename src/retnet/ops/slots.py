"""Padding and document starts as tokens of their own, for kernels that know neither.

A kernel that reads whole rows can be made to hold its state at one kind of token and to clear it at
another. A row then is its real tokens, a clearing one before each document start, and holding ones
to its end.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retnet.ops.layout import Layout


class Slots(NamedTuple):
    """What stands where in the longer rows.

    Attributes:
        token: of the call's T, the one in each slot; some token or other in the slots of none.
        holds: slots that follow a row's last token.
        clears: slots before a document's first token.
        place: the slot of each token; some slot or other for padding.
        last: the slot of each row's last token.
        empty: whether a row has no token.
    """

    token: Int[Tensor, "B L"]
    holds: Bool[Tensor, "B L"]
    clears: Bool[Tensor, "B L"]
    place: Int[Tensor, "B T"]
    last: Int[Tensor, " B"]
    empty: Bool[Tensor, " B"]

    @classmethod
    def of(cls, layout: Layout) -> "Slots | None":
        """Those of a call, found once for all layers; None where its rows have neither."""
        mask = layout.valid if layout.valid is not None else layout.starts
        if mask is None:
            return None
        return layout.shared("slots", lambda: cls._find(layout, mask))

    @classmethod
    def _find(cls, layout: Layout, mask: Tensor) -> "Slots":
        B, T = mask.shape
        real = torch.ones_like(mask) if layout.valid is None else layout.valid
        starts = torch.zeros_like(mask) if layout.starts is None else layout.starts
        used = (real.long() + starts.long()).cumsum(1)  # B T, slots up to and with each token's
        length = used[:, -1]
        L = max(int(length.max()), 1)
        place = (used - 1).clamp(min=0)
        slots = torch.zeros(B, L + 1, dtype=torch.int64, device=mask.device)  # a last one for none
        numbers = torch.arange(T, device=mask.device).expand(B, T)
        token = slots.scatter(1, torch.where(real, place, L), numbers)[:, :L]
        clears = slots.scatter(1, torch.where(starts, place - 1, L), 1)[:, :L].bool()
        holds = torch.arange(L, device=mask.device) >= length[:, None]
        return cls(token, holds, clears, place, (length - 1).clamp(min=0), length == 0)

    def spread(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B L D"]:
        """Values of the tokens in their slots, zero in the others."""
        return _at(x, self.token).masked_fill((self.holds | self.clears)[..., None], 0)

    def gather(self, y: Float[Tensor, "B L W"]) -> Float[Tensor, "B T W"]:
        """Values of the slots at their tokens, anything at padding."""
        return _at(y, self.place)


def _at(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
