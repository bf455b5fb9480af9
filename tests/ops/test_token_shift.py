"""Each token mixed with the one before it, whatever lies between."""

import pytest
import torch
from torch import Tensor

from retnet.ops import Layout, blocks
from retnet.ops.token_shift import token_shift

B, T, D = 2, 6, 3
ONLY_BEFORE = torch.zeros(D, dtype=torch.float64)


def tokens() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return (
        torch.randn(B, T, D, generator=random, dtype=torch.float64),
        torch.randn(B, D, generator=random, dtype=torch.float64),
    )


def test_the_first_token_follows_what_was_carried_and_the_last_is_carried_on() -> None:
    """Trap 8."""
    h, last = tokens()
    [before], after = token_shift(h, last, Layout.of(B, T), ONLY_BEFORE)
    torch.testing.assert_close(before, torch.cat((last[:, None], h[:, :-1]), 1))
    assert torch.equal(after, h[:, -1])


def test_a_text_starts_after_zeros_and_not_after_itself() -> None:
    """Trap 8."""
    h, last = tokens()
    [before], _ = token_shift(h, None, Layout.of(B, T), ONLY_BEFORE)
    assert (before[:, 0] == 0).all()
    starts = torch.zeros(B, T, dtype=torch.bool)
    starts[0, 2] = True
    [before], _ = token_shift(h, last, Layout.of(B, T, starts=starts), ONLY_BEFORE)
    assert (before[starts] == 0).all()


def test_what_is_carried_is_float32() -> None:
    h, last = tokens()
    [before], after = token_shift(h.bfloat16(), last.float(), Layout.of(B, T), ONLY_BEFORE)
    assert before.dtype == torch.bfloat16
    assert torch.equal(after, h[:, -1].bfloat16().float())


@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
def test_mixtures_weigh_the_current_token_and_so_do_their_gradients(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 8; a weight may be more than 1."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    h, last = (x.requires_grad_() for x in tokens())
    mixes = [torch.linspace(a, 1.2, D).double().requires_grad_() for a in (0.0, 0.5)]
    layout = Layout.of(B, T)

    def mixtures(h: Tensor, last: Tensor, *mixes: Tensor) -> tuple[Tensor, ...]:
        return token_shift(h, last, layout, *mixes)[0]

    before = torch.cat((last[:, None], h[:, :-1]), 1)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for got, mix in zip(mixtures(h, last, *mixes), mixes, strict=True):
                torch.testing.assert_close(got, mix * h + (1 - mix) * before)
    assert torch.autograd.gradcheck(mixtures, (h, last, *mixes))
