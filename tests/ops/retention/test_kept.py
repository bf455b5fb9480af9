"""What chunkwise retention keeps for its backward pass."""

import torch
from torch import Tensor

from retnet.ops import Layout, retention
from support import kept_bytes

B, T, H, D, C = 2, 256, 2, 4, 32


def test_decays_between_tokens_are_kept_once_for_all_layers() -> None:
    """Where documents begin in a row, each of its chunks has decays of its own."""
    starts = torch.zeros(B, T, dtype=torch.bool)
    starts[:, 100] = True
    decay = torch.tensor([-0.1, -0.01], dtype=torch.float64)
    between = 4 * B * H * T * C
    one, three = (_kept(layers, starts, decay) for layers in (1, 3))
    assert one > between
    assert three < one + between


def _kept(layers: int, starts: Tensor, decay: Tensor) -> int:
    """Bytes of all tensors that are kept, each counted once."""
    layout = Layout.of(B, T, starts=starts)

    def read() -> None:
        for _ in range(layers):
            q, k, v = (torch.randn(B, T, H, D, requires_grad=True) for _ in range(3))
            retention(q, k, v, decay, layout=layout, form="chunkwise", chunk_size=C)

    return sum(kept_bytes(read).values())
