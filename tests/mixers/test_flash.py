"""What FLASH promises beyond the contract of all branches."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from golden_files import golden
from mixers.cases import D, build
from retnet.mixers.flash import FLASHConfig
from retnet.ops import Layout
from retnet.types import Form

FORMS = ("recurrent", "chunkwise")
forms = pytest.mark.parametrize("form", FORMS)


def text(B: int, T: int) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@forms
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_outputs_are_those_of_flash_pytorch(form: Form, dtype: torch.dtype) -> None:
    """Whose scores are divided by C before they are squared; the sums by C in both."""
    file = golden("flash")
    w, x = file.weights(), file.arrays["in.x"].to(dtype)
    C, s, e = 8, 12, 48
    module = FLASHConfig(
        key_width=s, chunk=C, normalizer="chunk", position="none", bias=True
    ).build(24)
    scale = torch.tensor([(s / C) ** 0.5, 1, 1, 1], dtype=torch.float64)[:, None]
    weights = {
        "gamma": w["qk_offset_scale.gamma"] * scale,
        "beta": w["qk_offset_scale.beta"] * scale,
    }
    for part in ("weight", "bias"):
        hidden = w[f"to_hidden.0.{part}"]
        weights |= {f"v_proj.{part}": hidden[:e], f"u_proj.{part}": hidden[e:]}
        weights |= {f"z_proj.{part}": w[f"to_qk.0.{part}"], f"o_proj.{part}": w[f"to_out.{part}"]}
    module = module.to(dtype)
    module.unit.load_state_dict(weights)
    normed = F.layer_norm(x, (24,), w["norm.weight"].to(dtype), w["norm.bias"].to(dtype))
    y, _ = module(normed, None, Layout.of(*x.shape[:2]), form)
    file.assert_agrees(y, "branch")
    file.assert_agrees(x + y, "y")


@forms
@pytest.mark.parametrize("normalizer", ["tokens", "chunk"])
def test_in_its_first_chunk_it_is_a_gated_attention_unit(form: Form, normalizer: str) -> None:
    flash = build("flash", {"key_width": 6, "chunk": 16, "normalizer": normalizer, "bias": True})
    gau = build("gau", {"key_width": 6, "kernel": "relu2", "n": 16, "bias": True})
    weights = flash.state_dict()
    for name in ("unit.gamma", "unit.beta"):
        weights[name] = weights[name][[0, 2]]  # of queries and keys for pairs
    gau.load_state_dict(weights)
    x, layout = text(2, 20), Layout.of(2, 20)
    got, want = flash(x, None, layout, form)[0], gau(x, None, layout, form)[0]
    torch.testing.assert_close(got[:, :16], want[:, :16])
    assert not torch.allclose(got[:, 16], want[:, 16])


def test_sums_are_divided_by_their_tokens_or_by_a_chunk() -> None:
    layout = Layout.of(1, 12)
    scales = {
        rule: FLASHConfig(key_width=4, chunk=4, normalizer=rule).build(D).scale(layout)  # type: ignore[arg-type]
        for rule in ("tokens", "chunk")
    }
    for scale in scales.values():
        assert (scale[0, :, 0, 0] == 1 / 4).all()  # (s C)^-1/2
    assert scales["tokens"][0, [4, 7, 8, 11], 1, 0].tolist() == [1 / 4, 1 / 4, 1 / 8, 1 / 8]
    assert scales["chunk"][0, [4, 7, 8, 11], 1, 0].tolist() == [1 / 4] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@forms
def test_half_precision_gives_finite_outputs_and_a_float32_state(
    dtype: torch.dtype, form: Form
) -> None:
    module, x = build("flash", {"key_width": 6, "chunk": 8}), text(2, 60)
    exact, _ = module(x, None, Layout.of(2, 60))
    y, state = module.to(dtype)(x.to(dtype), None, Layout.of(2, 60), form)
    assert y.dtype == dtype
    assert all(leaf.dtype == torch.float32 for leaf in state)
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match=r"chunk \(0\) must be at least 1; 256 is usual"):
        FLASHConfig(chunk=0)
    with pytest.raises(ValueError, match=r"key_width \(5\) must be positive, and even because"):
        FLASHConfig(key_width=5)
    assert FLASHConfig(key_width=5, position="none").build(D).width == 2 * D
