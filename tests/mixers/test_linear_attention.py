"""What linear attention promises beyond the contract of all branches."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixers.cases import D, build
from retnet.mixers.linear_attention import LinearAttention, LinearAttentionConfig, SumState
from retnet.mixers.retention import RetentionConfig
from retnet.ops import Layout
from retnet.types import Form

FORMS = ("parallel", "recurrent", "chunkwise")
forms = pytest.mark.parametrize("form", FORMS)

SUM: dict[str, Any] = {"num_heads": 3, "feature_map": "identity", "normalize": False}


def text(B: int, T: int) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@forms
def test_retention_without_decay_rotation_norm_and_gate_is_the_plain_sum(form: Form) -> None:
    plain = build("linear_attention", SUM)
    retention = RetentionConfig(
        num_heads=3,
        value_width=D,
        decay="constant:1",
        theta="none",
        score_norm="none",
        head_norm="none",
        gate=False,
    ).build(D)
    retention = retention.double()
    retention.load_state_dict(plain.state_dict())
    x, layout = text(2, 9), Layout.of(2, 9)
    got, state = plain(x, None, layout, form)
    want, want_state = retention(x, None, layout, form)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(state.S, want_state.S * 4**0.5)  # that one scales keys by D_k^-1/2


@forms
def test_equal_tokens_give_equal_outputs_only_where_the_sum_is_divided(form: Form) -> None:
    """A mean of equal values is that value: such a layer cannot count."""
    x, layout = text(1, 1).expand(1, 12, D), Layout.of(1, 12)
    mean, _ = build("linear_attention", {"num_heads": 3, "eps": 0.0})(x, None, layout, form)
    torch.testing.assert_close(mean, mean[:, :1].expand_as(mean))
    total, state = build("linear_attention", SUM)(x, None, layout, form)
    assert isinstance(state, SumState)
    steps = total[:, 1:] - total[:, :-1]
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps))
    assert steps.abs().max() > 0.1


def test_rotation_tells_orders_of_the_past_apart() -> None:
    x, layout, order = text(1, 6), Layout.of(1, 6), [3, 0, 4, 2, 1, 5]
    for position, same in (("none", True), ("rope", False)):
        module = build("linear_attention", {"num_heads": 3, "position": position})
        last, mixed = (module(y, None, layout)[0][:, -1] for y in (x, x[:, order]))
        assert torch.allclose(last, mixed) == same


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gives_finite_outputs_and_a_float32_state(dtype: torch.dtype) -> None:
    module, x = build("linear_attention", {"num_heads": 3}), text(2, 300)
    exact, _ = module(x, None, Layout.of(2, 300))
    y, state = module.to(dtype)(x.to(dtype), None, Layout.of(2, 300))
    assert y.dtype == dtype
    assert all(leaf.dtype == torch.float32 for leaf in state)
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_heads \(0\) must be at least 1"):
        LinearAttentionConfig(num_heads=0)
    with pytest.raises(ValueError, match=r'"identity" has weights of either sign.*set normalize'):
        LinearAttentionConfig(num_heads=2, feature_map="identity")
    with pytest.raises(ValueError, match=r"eps \(-1.0\) must not be negative"):
        LinearAttentionConfig(num_heads=2, eps=-1.0)
    with pytest.raises(ValueError, match=r"d_model \(12\) must be a multiple of num_heads \(5\)"):
        LinearAttentionConfig(num_heads=5).build(12)
    with pytest.raises(ValueError, match=r"d_model / num_heads \(3\) must be even, because"):
        LinearAttentionConfig(num_heads=4, position="rope").build(12)
    assert isinstance(LinearAttentionConfig(num_heads=4).build(12), LinearAttention)
