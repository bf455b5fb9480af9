"""Blocks of tokens that fit a cache."""

import pytest
import torch

from retnet.ops import blocks as module
from retnet.ops.blocks import blocks


@pytest.mark.parametrize("shape", [(2, 7, 3, 4), (2, 7, 4), (7, 4), (4,), (1, 1, 4)], ids=str)
@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
def test_blocks_cover_every_element_once_and_in_order(
    shape: tuple[int, ...], block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    x, doubled = torch.randn(shape), torch.full(shape, torch.nan)
    for x_b, nothing, doubled_b, spare in blocks(x, None, doubled, scratch=[torch.float64]):
        assert nothing is None
        assert spare.shape == x_b.shape
        assert spare.dtype == torch.float64
        doubled_b.copy_(spare.copy_(x_b).mul_(2))
    assert torch.equal(doubled, 2 * x)


def test_scratch_is_the_same_memory_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 16)
    addresses = [
        spare.data_ptr() for _, spare in blocks(torch.ones(1, 5, 4), scratch=[torch.float32])
    ]
    assert len(addresses) == 5
    assert len({*addresses}) == 1
