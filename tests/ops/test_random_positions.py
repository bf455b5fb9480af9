"""Positions drawn for training: in order, of the right length on average."""

import pytest
import torch

from retnet.ops.random_positions import exponential_spread, random_subset


def test_a_subset_is_in_order_without_repetition_and_every_position_is_as_likely() -> None:
    torch.manual_seed(0)
    drawn = random_subset(3000, 4, 16)
    assert (drawn.diff(dim=1) > 0).all()
    assert drawn.min() == 0
    assert drawn.max() == 15
    share = drawn.flatten().bincount() / 3000  # 4 of 16
    torch.testing.assert_close(share, torch.full((16,), 0.25), rtol=0, atol=0.03)
    assert random_subset(1, 5, 5).tolist() == [[0, 1, 2, 3, 4]]


def test_a_spread_is_even_and_as_long_as_the_text_on_average() -> None:
    torch.manual_seed(0)
    drawn = exponential_spread(20_000, 64)
    assert not drawn[:, 0].any()
    torch.testing.assert_close(drawn.diff(dim=1), (drawn[:, -1:] / 63).expand(-1, 63))
    assert drawn[:, -1].mean().item() == pytest.approx(64, rel=0.03)
    assert (drawn[:, -1] > 64).double().mean().item() == pytest.approx(0.368, abs=0.02)


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="5 tokens cannot have different positions below 4; raise"):
        random_subset(1, 5, 4)
