"""Linear attention is the weighted mean that its definition says, and what others compute."""

import pytest
import torch
from torch import Tensor

from golden_files import golden
from retnet.ops import Layout, retention
from retnet.ops.linear_attention import LinearAttentionState, features, linear_attention
from retnet.types import Form

FORMS = ("parallel", "recurrent", "chunkwise")
forms = pytest.mark.parametrize("form", FORMS)
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def inputs(T: int = 11) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(2, T, 3, width, generator=rng).double() for width in (4, 4, 5)]


@dtypes
@forms
def test_outputs_and_states_are_those_of_flash_linear_attention(
    form: Form, dtype: torch.dtype
) -> None:
    file = golden("linear_attention")
    q, k, v, S, z = (
        file.arrays[f"in.{name}"].to(dtype) for name in ("q", "k", "v", "initial_S", "initial_z")
    )
    q, k = features(q, "elu") * q.shape[-1] ** -0.5, features(k, "elu")
    y, state = linear_attention(q, k, v, eps=1e-10, form=form)
    file.assert_agrees(y, "y")
    file.assert_agrees(state.S, "state_S")
    file.assert_agrees(state.z, "state_z")
    y, state = linear_attention(q, k, v, LinearAttentionState(S, z), eps=1e-10, form=form)
    file.assert_agrees(y, "y_with_state")
    file.assert_agrees(state.S, "state_S_with_state")
    file.assert_agrees(state.z, "state_z_with_state")


@dtypes
@forms
def test_retention_without_decay_is_their_sum_without_a_divisor(
    form: Form, dtype: torch.dtype
) -> None:
    file = golden("linear_attention")
    q, k, v = (file.arrays[f"in.{name}"].to(dtype) for name in ("q", "k", "v"))
    y, S = retention(q * q.shape[-1] ** -0.5, k, v, torch.zeros(3), form=form)
    file.assert_agrees(y, "y_identity_unnormalised")
    file.assert_agrees(S, "state_S_identity")


@forms
@pytest.mark.parametrize("feature_map", ["elu", "relu"])
@pytest.mark.parametrize("turn", [False, True])
def test_the_output_is_the_quotient_of_two_sums_over_the_past(
    form: Form, feature_map: str, turn: bool
) -> None:
    q, k, v = inputs()
    q, k = features(q, feature_map), features(k, feature_map)  # type: ignore[arg-type]
    rotated = (q.flip(-1), k.roll(1, -1)) if turn else None
    y, _ = linear_attention(q, k, v, eps=1e-3, rotated=rotated, form=form)
    causal = torch.ones(11, 11, dtype=torch.bool).tril()
    weights = torch.einsum("bihd,bjhd->bhij", q, k) * causal
    read = torch.einsum("bihd,bjhd->bhij", *(rotated or (q, k))) * causal
    want = read / (weights.sum(-1, keepdim=True) + 1e-3) @ v.transpose(1, 2)
    torch.testing.assert_close(y, want.transpose(1, 2), rtol=1e-10, atol=1e-10)


@forms
def test_where_no_key_matches_the_output_is_zero(form: Form) -> None:
    q, k, v = inputs()
    y, state = linear_attention(q.relu(), 0 * k, v, form=form)
    assert torch.equal(y, torch.zeros_like(v))
    assert torch.equal(state.z, torch.zeros_like(state.z))


@forms
def test_padding_adds_nothing_to_either_sum(form: Form) -> None:
    q, k, v = inputs()
    q, k = features(q, "elu"), features(k, "elu")
    valid = torch.rand(2, 11, generator=torch.Generator().manual_seed(1)) < 0.6
    y, state = linear_attention(q, k, v, layout=Layout.of(2, 11, valid=valid), form=form)
    assert torch.equal(y[~valid], torch.zeros_like(y[~valid]))
    for b in range(2):
        q_b, k_b, v_b = (x[b : b + 1, valid[b]] for x in (q, k, v))
        alone, state_alone = linear_attention(q_b, k_b, v_b, form=form)
        torch.testing.assert_close(y[b : b + 1, valid[b]], alone)
        torch.testing.assert_close(state.z[b : b + 1], state_alone.z)


def test_without_a_mask_the_weights_have_rank_D_k_and_with_one_they_are_invertible() -> None:
    """Su 2023, kexue.fm/archives/9529: the argument for decoders."""
    T, D_k = 128, 16
    q, k = features(torch.randn(2, T, D_k, dtype=torch.float64), "elu")
    weights = q @ k.mT
    assert torch.linalg.matrix_rank(weights) == D_k
    assert torch.linalg.matrix_rank(weights.tril()) == T


def test_padding_without_an_eps_is_zero_and_has_gradients() -> None:
    q = torch.ones(1, 3, 1, 2, requires_grad=True)
    layout = Layout.of(1, 3, valid=torch.tensor([[False, True, False]]))
    o, _ = linear_attention(q, q, q, eps=0.0, layout=layout)
    assert o.flatten().tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    o.sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()
