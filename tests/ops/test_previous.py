"""What came before each token, whatever padding and documents lie between."""

import pytest
import torch

from retnet.ops import Layout
from retnet.ops.previous import previous_tokens

B, T, W = 3, 8, 2


def given(masks: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    valid = torch.rand(B, T) < 0.6 if "valid" in masks else None
    starts = torch.rand(B, T) < 0.3 if "starts" in masks else None
    return valid, starts


@pytest.mark.parametrize("masks", ["none", "valid", "starts", "valid starts"])
@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("seen", [0, 2, 20])
def test_each_token_finds_the_real_ones_of_its_document(count: int, masks: str, seen: int) -> None:
    torch.manual_seed(count)
    x, older = torch.randn(B, T, W), torch.randn(B, max(seen, 1), W)[:, :seen]
    valid, starts = given(masks)
    before = torch.cat([torch.zeros(B, count, W), older], 1)[:, -count:]
    layout = Layout.of(B, T, position=torch.full((B,), seen), valid=valid, starts=starts)
    shifted, after = previous_tokens(x, count, before, layout=layout)
    assert len(shifted) == count
    for row in range(B):
        document = list(older[row])
        for t in range(T):
            if valid is not None and not valid[row, t]:
                continue
            if starts is not None and starts[row, t]:
                document = []
            for j, values in enumerate(shifted, 1):
                want = document[-j] if j <= len(document) else torch.zeros(W)
                assert torch.equal(values[row, t], want)
            document.append(x[row, t])
        want = torch.stack([torch.zeros(W)] * count + document)[-count:]
        assert torch.equal(after[row], want)


def test_values_keep_their_dtype_and_the_state_is_float32() -> None:
    (one,), after = previous_tokens(torch.ones(1, 2, 1).bfloat16(), 1)
    assert one.dtype == torch.bfloat16
    assert after.dtype == torch.float32
    (one,), after = previous_tokens(torch.ones(1, 2, 1).bfloat16(), 1, after)
    assert one.dtype == torch.bfloat16
    assert after.dtype == torch.float32
