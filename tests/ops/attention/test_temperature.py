"""Scores that sharpen with the number of keys."""

import math

import pytest
import torch

from retnet.ops.attention.temperature import log_n_scale


def test_it_is_one_at_the_training_length_and_beyond_is_never_less() -> None:
    n = torch.tensor([[1, 2, 64, 128, 512]])
    always = log_n_scale(n, 64, "always")
    want = [math.log(i) / math.log(64) for i in n[0].tolist()]
    torch.testing.assert_close(always[0], torch.tensor(want, dtype=torch.float64))
    assert log_n_scale(n, 64, "beyond")[0].tolist() == pytest.approx([1, 1, 1, *want[3:]])


def test_entropy_of_random_keys_grows_more_slowly() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(40, 16, dtype=torch.float64), torch.randn(4096, 16, dtype=torch.float64)

    def entropy(n: int, scale: float) -> float:
        p = (scale * q @ k[:n].T / 4).softmax(-1)
        return -(p * p.log()).sum(-1).mean().item()

    scale = log_n_scale(torch.tensor([[4096]]), 128, "always").item()
    plain = entropy(4096, 1.0) - entropy(128, 1.0)
    assert 0 < entropy(4096, scale) - entropy(128, 1.0) < 0.95 * plain
