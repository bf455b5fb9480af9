"""What attention promises beyond the contract of all branches."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixers.cases import D, build
from retnet.mixers.attention import Attention, AttentionConfig
from retnet.ops import Layout
from retnet.ops.attention import AttentionState

CASES: list[dict[str, Any]] = [
    {"num_heads": 3},
    {"num_heads": 6, "num_kv_heads": 2, "pairs": "interleaved"},
]


def text(B: int, T: int) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("given", CASES, ids=str)
def test_a_state_has_two_vectors_of_all_key_heads_for_each_token(given: dict[str, Any]) -> None:
    module = build("attention", given)
    kv_heads = given.get("num_kv_heads", given["num_heads"])
    for T in (1, 2, 9):
        _, state = module(text(2, T), None, Layout.of(2, T))
        numbers = sum(leaf.numel() for leaf in state)
        assert numbers == 2 * T * 2 * kv_heads * (D // given["num_heads"])


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
def test_only_distances_between_tokens_matter(pairs: str) -> None:
    """Rotation by position: all positions moved by as much give the same."""
    module, x = build("attention", {"num_heads": 3, "pairs": pairs}), text(1, 7)
    y, _ = module(x, None, Layout.of(1, 7))
    for position in (1, 1000):
        moved = Layout.of(1, 7, position=torch.tensor([position]))
        got, _ = module(x, None, moved)
        torch.testing.assert_close(got, y, rtol=1e-9, atol=1e-9)


def test_both_pairings_are_one_model_with_rows_in_another_order() -> None:
    """Channels (2i, 2i+1) or (i, i + half): a permutation of the weights of q and k."""
    half = build("attention", {"num_heads": 2})
    interleaved = AttentionConfig(num_heads=2, pairs="interleaved").build(D).double()
    interleaved.load_state_dict(half.state_dict())
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            weight = getattr(half, name).weight.unflatten(0, (2, 2, -1))  # heads, halves, pairs
            getattr(interleaved, name).weight.copy_(weight.transpose(1, 2).flatten(0, 2))
    x, layout = text(2, 6), Layout.of(2, 6)
    torch.testing.assert_close(interleaved(x, None, layout)[0], half(x, None, layout)[0])


def test_without_positions_the_past_has_no_order() -> None:
    module, x = build("attention", {"num_heads": 3, "position": "none"}), text(1, 6)
    last = module(x, None, Layout.of(1, 6))[0][:, -1]
    mixed = module(x[:, [3, 0, 4, 2, 1, 5]], None, Layout.of(1, 6))[0][:, -1]
    torch.testing.assert_close(mixed, last, rtol=1e-9, atol=1e-9)
    rotated = build("attention", {"num_heads": 3})
    a, b = (rotated(y, None, Layout.of(1, 6))[0][:, -1] for y in (x, x[:, [3, 0, 4, 2, 1, 5]]))
    assert not torch.allclose(a, b)


def test_grouped_heads_are_all_heads_with_repeated_keys_and_values() -> None:
    grouped = build("attention", {"num_heads": 6, "num_kv_heads": 2})
    whole = AttentionConfig(num_heads=6).build(D).double()
    weights = grouped.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        heads = weights[name].unflatten(0, (2, -1))
        weights[name] = heads.repeat_interleave(3, 0).flatten(0, 1)
    whole.load_state_dict(weights)
    x, layout = text(2, 6), Layout.of(2, 6)
    torch.testing.assert_close(grouped(x, None, layout)[0], whole(x, None, layout)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gives_finite_outputs_and_a_state_in_it(dtype: torch.dtype) -> None:
    module = build("attention", {"num_heads": 3})
    exact, _ = module(text(2, 20), None, Layout.of(2, 20))
    y, state = module.to(dtype)(text(2, 20).to(dtype), None, Layout.of(2, 20))
    assert isinstance(state, AttentionState)
    assert y.dtype == state.k.dtype == state.v.dtype == dtype
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_heads \(0\) must be at least 1"):
        AttentionConfig(num_heads=0)
    with pytest.raises(ValueError, match=r"num_heads \(6\) must be a multiple of num_kv_heads \(4"):
        AttentionConfig(num_heads=6, num_kv_heads=4)
    with pytest.raises(ValueError, match=r"multiple of num_kv_heads \(0\)"):
        AttentionConfig(num_heads=6, num_kv_heads=0)
    with pytest.raises(ValueError, match=r"rope_base \(1.0\) must be greater than 1; 10000 is"):
        AttentionConfig(num_heads=6, rope_base=1.0)
    with pytest.raises(ValueError, match=r"d_model \(12\) must be a multiple of num_heads \(5\)"):
        AttentionConfig(num_heads=5).build(12)
    with pytest.raises(ValueError, match=r"d_model / num_heads \(3\) must be even, because"):
        AttentionConfig(num_heads=4).build(12)
    assert isinstance(AttentionConfig(num_heads=4, position="none").build(12), Attention)


@pytest.mark.parametrize("given", [*CASES, {"num_heads": 2, "position": "none"}], ids=str)
@torch.no_grad()
def test_an_opened_state_steps_as_a_plain_one(given: dict[str, Any]) -> None:
    module, x = build("attention", given), text(2, 8)
    assert isinstance(module, Attention)
    want, whole = module(x, None, Layout.of(2, 8))
    first, state = module(x[:, :5], None, Layout.of(2, 5))
    opened, outputs = module.open_state(state, 3), [first]
    for t in range(5, 8):
        layout = Layout.of(2, 1, position=torch.full((2,), t))
        y, opened = module(x[:, t : t + 1], opened, layout)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), want)
    closed = module.close_state(opened)
    assert isinstance(closed, AttentionState)
    torch.testing.assert_close(list(closed), list(whole))
