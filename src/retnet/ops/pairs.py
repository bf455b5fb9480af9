"""Which tokens may look at which: the keys of a growing state, then those of a call."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from retnet.ops.attention.states import documents
from retnet.ops.layout import Layout


class Pairs(NamedTuple):
    """Of each slot of an `AttentionState` and each token of the call after it.

    Attributes:
        document: of its row, 0 for that of the state.
        real: False at padding and in slots that the row does not use.
    """

    document: Int[Tensor, "rows keys"]
    real: Bool[Tensor, "rows keys"]

    @classmethod
    def of(cls, layout: Layout, slots: int) -> "Pairs":
        """Of a call after a state with so many slots; made once for all layers."""

        def build() -> Pairs:
            first = layout.positions[:, :1]
            new = torch.zeros_like(layout.positions)
            real = torch.ones_like(new, dtype=torch.bool) if layout.valid is None else layout.valid
            of = documents(layout)
            new = new if of is None else of
            held = torch.arange(slots, device=new.device) < first
            return cls(
                torch.cat([new.new_zeros(len(new), slots), new], 1), torch.cat([held, real], 1)
            )

        return layout.shared(("pairs", slots), build)

    def seen(self, queries: slice, keys: slice) -> Bool[Tensor, "rows queries keys"]:
        """Which keys each query may look at: real ones of its document, up to itself."""
        index = torch.arange(self.real.shape[1], device=self.real.device)
        causal = index[keys] <= index[queries, None]
        same = self.document[:, queries, None] == self.document[:, None, keys]
        return causal & same & self.real[:, None, keys]
