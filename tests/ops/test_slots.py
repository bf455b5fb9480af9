"""Rows made longer hold every real token once, in order, with a clearing slot before each start."""

import pytest
import torch

from retnet.ops import Layout
from retnet.ops.slots import Slots

B, T = 4, 9


@pytest.mark.parametrize("masks", ["valid", "starts", "valid starts"])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_tokens_clearings_and_holdings(masks: str, seed: int) -> None:
    torch.manual_seed(seed)
    valid = torch.rand(B, T) < 0.6 if "valid" in masks else None
    starts = torch.rand(B, T) < 0.3 if "starts" in masks else None
    layout = Layout.of(B, T, valid=valid, starts=starts)
    slots = Slots.of(layout)
    assert slots is not None
    x = torch.arange(1.0, B * T + 1).view(B, T, 1)
    wide = slots.spread(x)
    for row in range(B):
        want = []
        for t in range(T):
            if valid is None or valid[row, t]:
                want += ["clear"] * bool(starts is not None and starts[row, t])
                want.append(x[row, t].item())
        assert slots.empty[row] == (not want)
        if want:
            assert wide[row, slots.last[row], 0] == want[-1]
        want += ["hold"] * (wide.shape[1] - len(want))
        for slot, what in enumerate(want):
            assert slots.clears[row, slot] == (what == "clear")
            assert slots.holds[row, slot] == (what == "hold")
            assert wide[row, slot, 0] == (what if isinstance(what, float) else 0)
    back = slots.gather(wide)
    real = torch.ones(B, T, dtype=torch.bool) if valid is None else valid
    assert torch.equal(back[real], x[real])


def test_whole_rows_have_no_other_slots() -> None:
    assert Slots.of(Layout.of(B, T)) is None
