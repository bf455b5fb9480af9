"""What can be proved of the rank of weights, on the matrices whose spectra are shown."""

import pytest
import torch

from retnet.reproduce.spectra import MATRICES, effective_rank, random_spectra


def test_the_effective_rank_counts_equal_directions() -> None:
    torch.testing.assert_close(effective_rank(torch.eye(7)).item(), 7.0)
    assert effective_rank(torch.ones(5, 5)).item() == pytest.approx(1.0)
    both = effective_rank(torch.stack([torch.eye(4), torch.diag(torch.tensor([1.0, 1, 0, 0]))]))
    torch.testing.assert_close(both, torch.tensor([4.0, 2.0]).double())


def test_causal_weights_of_a_softmax_have_the_determinant_of_their_diagonal() -> None:
    q, k = torch.randn(2, 3, 12, 4, generator=torch.Generator().manual_seed(0)).double()
    weights = MATRICES["softmax, causal"](q, k)
    log_diagonal = weights.diagonal(dim1=1, dim2=2).log().sum(1)
    assert log_diagonal.isfinite().all()
    torch.testing.assert_close(torch.linalg.slogdet(weights).logabsdet, log_diagonal)


def test_linear_attention_both_ways_has_no_more_directions_than_channels() -> None:
    found = random_spectra(tokens=24, width=4, draws=2)
    values = found["linear attention, both ways"].values
    assert (values > 1e-10).sum() == 4
    assert (found["linear attention, causal"].values > 1e-10).all()


def test_every_kind_of_weights_is_spread_over_the_tokens() -> None:
    for name, spectrum in random_spectra(tokens=16, width=4, draws=2).items():
        assert spectrum.values.shape == (16,), name
        assert spectrum.values[0] == pytest.approx(1.0)
        assert 1 <= spectrum.effective_rank <= 16
