"""The token before each one, whatever lies between, and mixtures of both."""

import pytest
import torch
from torch import Tensor

from retnet.ops import Layout, blocks
from retnet.ops.token_shift import previous, shift_mix

B, T, D = 2, 6, 3


def tokens() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return (
        torch.randn(B, T, D, generator=random, dtype=torch.float64),
        torch.randn(B, D, generator=random, dtype=torch.float64),
    )


def test_the_first_token_follows_what_was_carried_and_the_last_is_carried_on() -> None:
    """Trap 8."""
    h, last = tokens()
    before, after = previous(h, last, Layout.of(B, T))
    assert torch.equal(before, torch.cat((last[:, None], h[:, :-1]), 1))
    assert torch.equal(after, h[:, -1])


def test_a_document_starts_after_zeros() -> None:
    h, last = tokens()
    starts = torch.zeros(B, T, dtype=torch.bool)
    starts[0, 2], starts[1, 0] = True, True
    before, _ = previous(h, last, Layout.of(B, T, starts=starts))
    assert (before[starts] == 0).all()
    assert torch.equal(before[0, 1], h[0, 0])


def test_padding_stands_before_nothing() -> None:
    h, last = tokens()
    valid = torch.tensor([[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()
    before, after = previous(h, last, Layout.of(B, T, valid=valid))
    assert torch.equal(before[0, 1], last[0])
    assert torch.equal(before[0, 4], h[0, 1])
    assert torch.equal(after, torch.stack((h[0, 4], last[1])))


def test_no_tokens_leave_what_was_carried() -> None:
    h, last = tokens()
    before, after = previous(h[:, :0], last, Layout.of(B, 0))
    assert before.shape == (B, 0, D)
    assert torch.equal(after, last)


def test_what_is_carried_keeps_its_dtype() -> None:
    h, last = tokens()
    for valid in (None, torch.ones(B, T).bool()):
        before, after = previous(h.bfloat16(), last.float(), Layout.of(B, T, valid=valid))
        assert before.dtype == torch.bfloat16
        assert after.dtype == torch.float32
        assert torch.equal(after, h[:, -1].bfloat16().float())


@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
def test_mixtures_weigh_the_current_token_and_so_do_their_gradients(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 8; a weight may be more than 1."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    h, last = tokens()
    before = previous(h, last, Layout.of(B, T))[0].requires_grad_()
    mixes = [torch.linspace(a, 1.2, D).double().requires_grad_() for a in (0.0, 0.5)]
    h.requires_grad_()
    for got, mix in zip(shift_mix(h, before, *mixes), mixes, strict=True):
        torch.testing.assert_close(got, mix * h + (1 - mix) * before)
    assert torch.autograd.gradcheck(shift_mix, (h, before, *mixes))
    with torch.no_grad():
        for got, mix in zip(shift_mix(h, before, *mixes), mixes, strict=True):
            torch.testing.assert_close(got, mix * h + (1 - mix) * before)
