"""Softmax attention as its definition says it, one row and one query at a time, in float64."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from retnet.ops import Layout
from retnet.ops.attention import EVERYTHING, AttentionState, Reach


class Case(NamedTuple):
    """Arguments of one call of the op; row b's state is its first `position[b]` slots."""

    q: Tensor
    k: Tensor
    v: Tensor
    state: AttentionState | None = None
    position: Tensor | None = None
    valid: Tensor | None = None
    starts: Tensor | None = None

    def layout(self) -> Layout:
        B, T = self.q.shape[:2]
        return Layout.of(B, T, position=self.position, valid=self.valid, starts=self.starts)

    def to(self, dtype: torch.dtype) -> "Case":
        """The same numbers in another dtype."""
        state = self.state and AttentionState(*(x.to(dtype) for x in self.state))
        q, k, v = (x.to(dtype) for x in self[:3])
        return self._replace(q=q, k=k, v=v, state=state)


def random_case(  # noqa: PLR0913  (every case is a line of these)
    B: int,
    T: int,
    H: int = 2,
    H_kv: int | None = None,
    D_k: int = 4,
    *,
    position: list[int] | None = None,
    valid: Tensor | None = None,
    starts: Tensor | None = None,
    seed: int = 0,
) -> Case:
    """Random numbers; with `position`, a state of that many tokens for each row."""
    rng = torch.Generator().manual_seed(seed)
    H_kv = H_kv or H

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    q, k, v = normal(B, T, H, D_k), normal(B, T, H_kv, D_k), normal(B, T, H_kv, D_k)
    if position is None:
        return Case(q, k, v, None, None, valid, starts)
    seen = torch.tensor(position)
    slots = max(position)
    used = (torch.arange(slots) < seen[:, None])[:, None, :, None]
    state = AttentionState(*(normal(B, H_kv, slots, D_k).masked_fill(~used, 0) for _ in range(2)))
    return Case(q, k, v, state, seen, valid, starts)


def no_bias(distance: int, head: int) -> Tensor:  # noqa: ARG001
    return torch.zeros((), dtype=torch.float64)


def by_definition(
    case: Case, reach: Reach = EVERYTHING, bias: Callable[[int, int], Tensor] = no_bias
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Outputs, zero at padding, and each row's keys and values after the last token, (H, n, D).

    All of the document's keys are returned, whatever the reach.
    """
    q, k, v, state, position, valid, starts = case
    B, T, H, D_k = q.shape
    shared = H // k.shape[2]
    outputs, after = [], []
    for b in range(B):
        keys, values = [], []
        if state is not None and position is not None:
            n = int(position[b])
            keys, values = list(state.k[b, :, :n].unbind(1)), list(state.v[b, :, :n].unbind(1))
        for t in range(T):
            if valid is not None and not valid[b, t]:
                outputs.append(torch.zeros(H, v.shape[-1], dtype=torch.float64))
                continue
            if starts is not None and starts[b, t]:
                keys, values = [], []
            keys.append(k[b, t])
            values.append(v[b, t])
            heads, n = [], len(keys) - 1
            seen = [j for j in range(n + 1) if j > n - (reach.window or n + 1) or j < reach.sinks]
            for h in range(H):
                scores = torch.stack(
                    [q[b, t, h] @ keys[j][h // shared] / D_k**0.5 + bias(n - j, h) for j in seen]
                )
                weights = scores.exp() / scores.exp().sum()
                heads.append(
                    sum(w * values[j][h // shared] for w, j in zip(weights, seen, strict=True))
                )
            outputs.append(torch.stack(heads))  # type: ignore[arg-type]
        empty = k.new_zeros(k.shape[2], 0, D_k)
        after.append(tuple(torch.stack(x, 1) if x else empty for x in (keys, values)))
    return torch.stack(outputs).unflatten(0, (B, T)), after
