"""Positions drawn anew in training, so that those of longer texts have been seen."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def random_subset(
    rows: int, tokens: int, length: int, device: torch.device | None = None
) -> Int[Tensor, "rows tokens"]:
    """So many of the positions 0 to length - 1 in rising order, all subsets as likely.

    Source:
        Ruoss et al. 2023, arXiv:2305.16843.
    """
    if tokens > length:
        raise ValueError(
            f"{tokens} tokens cannot have different positions below {length}; raise the length of "
            "random_positions or shorten the texts"
        )
    return torch.rand(rows, length, device=device).topk(tokens).indices.sort(1).values


def exponential_spread(
    rows: int, tokens: int, device: torch.device | None = None
) -> Float[Tensor, "rows tokens"]:
    """Evenly spaced from 0 to a last position that is exponential with mean `tokens`.

    Positions are then the same on average as without it (Su 2023, kexue.fm/archives/9444).
    """
    last = torch.empty(rows, 1, dtype=torch.float64, device=device).exponential_(1 / tokens)
    return last * torch.linspace(0, 1, tokens, dtype=torch.float64, device=device)
