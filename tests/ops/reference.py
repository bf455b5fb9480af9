"""Retention as its definition says it, one row and one token at a time, in float64."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from retnet.ops import Layout
from retnet.ops.retention.torch_backend import state_dtype


class Case(NamedTuple):
    """Arguments of one call of the op."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    state: Tensor | None = None
    valid: Tensor | None = None
    starts: Tensor | None = None

    def __repr__(self) -> str:
        given = {"valid": self.valid, "starts": self.starts}
        masks = {name: mask.tolist() for name, mask in given.items() if mask is not None}
        return (
            f"Case(q={tuple(self.q.shape)}, v={tuple(self.v.shape)}, dtype={self.q.dtype}, "
            f"log_decay={self.log_decay.tolist()}, state={self.state is not None}, {masks})"
        )

    def with_inputs(self, qkv: Sequence[Tensor]) -> "Case":
        """The same case with other q, k, v."""
        q, k, v = qkv
        return self._replace(q=q, k=k, v=v)

    def layout(self) -> Layout | None:
        if self.valid is None and self.starts is None:
            return None
        return Layout.of(*self.q.shape[:2], valid=self.valid, starts=self.starts)

    def double(self) -> "Case":
        """The same numbers, as rounded by their dtype, in float64."""
        state = None if self.state is None else self.state.double()
        return self.with_inputs([x.double() for x in self[:3]])._replace(state=state)


def random_case(
    shape: tuple[int, int, int, int, int],
    *,
    state: bool = False,
    dtype: torch.dtype = torch.float64,
    log_decay: Tensor | None = None,
    seed: int = 0,
) -> Case:
    """Random numbers of shape (B, T, H, D_k, D_v); scores have variance 1."""
    B, T, H, D_k, D_v = shape
    rng = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    if log_decay is None:
        log_decay = torch.log1p(-(2.0 ** -torch.linspace(1, 9, H, dtype=torch.float64)))
    q, k, v = normal(B, T, H, D_k), normal(B, T, H, D_k) * D_k**-0.5, normal(B, T, H, D_v)
    S = normal(B, H, D_k, D_v).to(state_dtype(dtype)) if state else None
    return Case(q.to(dtype), k.to(dtype), v.to(dtype), log_decay, S)


def recurrence(case: Case) -> tuple[Tensor, Tensor]:
    """`S_n = decay S_(n-1) + k_n v_n^T`, `o_n = q_n S_n`; padding is skipped, a start forgets."""
    q, k, v, log_decay, state, valid, starts = case
    B, T, H, D_k = q.shape
    decay = log_decay.double().exp()[:, None, None]
    outputs, states = [], []
    for b in range(B):
        S = torch.zeros(H, D_k, v.shape[-1], dtype=torch.float64) if state is None else state[b]
        row = []
        for n in range(T):
            if valid is not None and not valid[b, n]:
                row.append(torch.zeros(H, v.shape[-1], dtype=torch.float64))
                continue
            if starts is not None and starts[b, n]:
                S = torch.zeros_like(S)
            S = decay * S + k[b, n, :, :, None] * v[b, n, :, None, :]
            row.append((q[b, n, :, :, None] * S).sum(1))
        outputs.append(torch.stack(row))
        states.append(S)
    return torch.stack(outputs), torch.stack(states)
