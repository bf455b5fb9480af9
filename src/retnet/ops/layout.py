"""Layout: where each token of a batch stands in its document, built once per model call."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from retnet.ops.sequence import SequenceRanks, Spread


@dataclass(frozen=True, eq=False)
class Layout:
    """Padding, document starts and positions of one call's tokens.

    A padded token is a no-op: it neither enters a state nor decays it nor advances a position.
    A start resets the state before its token is read. Build one with `Layout.of`.

    Attributes:
        positions: index of each token in its document; one row serves all rows when they agree.
            A padded token holds its row's next index.
        next_position: tokens of the current document that each row has seen after this call.
        valid: False at padding; None when there is none.
        starts: True where a document begins; None when none does.
        spread: what all ranks know of the call's rows if these tokens are a slice of them;
            positions are then those in the whole rows, and `next_position` is after these. None
            where the tokens are the whole rows.
    """

    positions: Int[Tensor, "rows T"]
    next_position: Int[Tensor, " B"]
    valid: Bool[Tensor, "B T"] | None = None
    starts: Bool[Tensor, "B T"] | None = None
    spread: Spread | None = None
    _shared: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        batch: int,
        tokens: int,
        *,
        position: Int[Tensor, " B"] | None = None,
        valid: Bool[Tensor, "B T"] | None = None,
        starts: Bool[Tensor, "B T"] | None = None,
        device: torch.device | None = None,
        sequence: SequenceRanks | None = None,
    ) -> "Layout":
        """Lay out `batch` rows of `tokens` tokens.

        Args:
            batch: rows.
            tokens: tokens of each row, padding included.
            position: tokens of the current document already seen by each row; None for none.
                Where rows are spread over ranks, before the whole rows.
            valid: False at padding, anywhere in the row.
            starts: True at the first token of a document; ignored at padding.
            device: where the positions live when no tensor says so.
            sequence: the ranks that the rows are spread over, all of which must call, each with
                the tokens and masks of its slice; None where a process has whole rows.
        """
        if sequence is not None:
            alone = cls.of(batch, tokens, valid=valid, starts=starts, device=device)
            count = alone.next_position
            fresh = torch.zeros_like(count).bool() if alone.starts is None else alone.starts.any(1)
            spread = Spread.gather(sequence, count, fresh)
            before, after = spread.positions(position)
            here = cls.of(batch, tokens, position=before, valid=valid, starts=starts)
            return replace(here, next_position=after, spread=spread)
        for name, mask in (("valid", valid), ("starts", starts)):
            if mask is not None and mask.shape != (batch, tokens):
                raise ValueError(
                    f"{name} has shape {tuple(mask.shape)}; it must be (B, T) = "
                    f"({batch}, {tokens}), one flag for each token"
                )
        given = next((t for t in (position, valid, starts) if t is not None), None)
        device = given.device if given is not None else device
        if valid is None and starts is None:
            positions = torch.arange(tokens, device=device)[None]  # 1 T
            if position is not None:
                positions = positions + position[:, None]  # B T
            end = positions[:, -1] + 1 if tokens else (position if position is not None else None)
            if end is None:
                end = torch.zeros(1, dtype=torch.int64, device=device)
            return cls(positions, end.expand(batch))
        real = torch.ones_like(starts) if valid is None else valid  # type: ignore[arg-type]
        seen = real.long().cumsum(1)  # B T, real tokens up to and with this one
        if position is not None:
            seen = seen + position[:, None]
        if starts is not None:
            starts = starts & real
            # tokens before the latest start do not count
            before = torch.where(starts, seen - 1, torch.zeros_like(seen)).cummax(1).values
            seen = seen - before
        positions = seen - real.long()
        if not tokens:
            return cls(positions, cls.of(batch, 0, position=position).next_position, valid, starts)
        return cls(positions, seen[:, -1], valid, starts)

    @classmethod
    def from_lengths(cls, lengths: Int[Tensor, " B"], tokens: int) -> "Layout":
        """Rows padded on the right: row b holds `lengths[b]` real tokens, then padding."""
        valid = torch.arange(tokens, device=lengths.device)[None] < lengths[:, None]
        return cls.of(len(lengths), tokens, valid=valid)

    def shared(self, key: Any, build: Callable[[], Any]) -> Any:
        """Return what `build` made for `key`, built once per call and used by all layers."""
        if key not in self._shared:
            self._shared[key] = build()
        return self._shared[key]
