"""WKV as its definition: a softmax over all tokens before, for every token and channel."""

import torch
from torch import Tensor

from retnet.ops.wkv.states import NOTHING, exact


def parallel(
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    first: Tensor,
    mean: Tensor,
    log_mass: Tensor,
    valid: Tensor | None,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and mean and log_mass after the last token; O(T^2 A) numbers.

    The state before is one more token, whose key is its log_mass and whose value its mean.
    """
    B, T = k.shape[:2]
    dtype = v.dtype
    k, v = (torch.cat((s[:, None], x.to(exact(dtype))), 1) for s, x in ((log_mass, k), (mean, v)))
    ones = torch.ones(B, T, dtype=torch.int64, device=k.device)
    real = ones if valid is None else valid.long()
    index = torch.cat((real.new_zeros(B, 1), real.cumsum(1)), 1)  # real tokens up to and with it
    document = torch.zeros_like(index) if starts is None else starts.long().cumsum(1)
    if starts is not None:
        document = torch.cat((document.new_zeros(B, 1), document), 1)
    counted = torch.cat((real.new_ones(B, 1), real), 1).bool()  # with the state, B 1+T

    def exponents(query_index: Tensor, query_document: Tensor, before: Tensor) -> Tensor:
        """Of the weights that queries (B, Q) give to tokens before them, (B, Q, 1 + T, A)."""
        age = query_index[:, :, None] - 1 - index[:, None]  # B Q 1+T
        e = k[:, None] + age[..., None] * log_decay
        same = document[:, None] == query_document[:, :, None]
        return e.where((same & before & counted[:, None])[..., None], NOTHING)

    tokens = torch.arange(T + 1, device=k.device)
    earlier = tokens[None, :] < tokens[1:, None]  # T 1+T
    asked = index[:, 1:] - real + 1  # as if the query were the next real token
    e = torch.cat((exponents(asked, document[:, 1:], earlier), (k[:, 1:] + first)[:, :, None]), 2)
    values = torch.cat((v[:, None].expand(-1, T, -1, -1), v[:, 1:, None]), 2)
    y = (e.softmax(2) * values).sum(2)
    e = exponents(index[:, -1:] + 1, document[:, -1:], tokens[None] <= T)[:, 0]
    return y.to(dtype), (e.softmax(1) * v).sum(1), e.logsumexp(1)
