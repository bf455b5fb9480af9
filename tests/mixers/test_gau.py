"""What the gated attention unit promises beyond the contract of all branches."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from golden_files import golden
from mixers.cases import D, build
from retnet.mixers.branch import Depth
from retnet.mixers.gau import GAU, GAUConfig
from retnet.ops import Layout
from retnet.ops.attention import StaticCache
from retnet.train.optimizer import decayed_parameters

dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def text(B: int, T: int, width: int = D) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(B, T, width, generator=rng, dtype=torch.float64)


@dtypes
@pytest.mark.parametrize("kernel", ["relu2", "laplace"])
def test_outputs_are_those_of_flash_pytorch(kernel: str, dtype: torch.dtype) -> None:
    """Whose n is the length of the row, and whose relu2 divides by its square."""
    file = golden(f"gau_{kernel}")
    w, x = file.weights(), file.arrays["in.x"].to(dtype)
    T, s, e = x.shape[1], 12, 48
    module = GAUConfig(
        key_width=s,
        kernel=kernel,  # type: ignore[arg-type]
        n=T,
        position="none",
        bias=True,
    ).build(24)
    theirs = (s / T) ** 0.5 if kernel == "relu2" else 1.0  # on q: relu(q k/T)^2, ours s T below
    scale = torch.tensor([[theirs], [1.0]], dtype=torch.float64)
    weights = {"gamma": w["offsetscale.gamma"] * scale, "beta": w["offsetscale.beta"] * scale}
    for part in ("weight", "bias"):
        hidden = w[f"to_hidden.0.{part}"]
        weights |= {f"v_proj.{part}": hidden[:e], f"u_proj.{part}": hidden[e:]}
        weights |= {f"z_proj.{part}": w[f"to_qk.0.{part}"], f"o_proj.{part}": w[f"to_out.0.{part}"]}
    module = module.to(dtype)
    module.unit.load_state_dict(weights)
    normed = F.layer_norm(x, (24,), w["norm.weight"].to(dtype), w["norm.bias"].to(dtype))
    y, _ = module(normed, None, Layout.of(*x.shape[:2]))
    file.assert_agrees(y, "branch")
    file.assert_agrees(x + y, "y")


@dtypes
def test_outputs_and_weights_are_those_of_gau_alpha(dtype: torch.dtype) -> None:
    file = golden("gau_alpha")
    w, x = file.weights(), file.arrays["in.x"].to(dtype)
    B, T, _ = x.shape
    module = GAUConfig(width=40, key_width=12, pairs="interleaved").build(24).to(dtype)
    u, v, z = w["gau.i_dense.weight"].split([40, 40, 12])
    gamma = torch.stack([w["gau.q_scaleoffset.weight"], w["gau.k_scaleoffset.weight"]])
    weights = {"u_proj": u, "v_proj": v, "z_proj": z, "o_proj": w["gau.o_dense.weight"]}
    named = {f"{name}.weight": tensor for name, tensor in weights.items()}
    module.unit.load_state_dict(named | {"gamma": gamma})
    y, state = module(x, None, Layout.of(B, T))
    file.assert_agrees(y, "gau")
    file.assert_agrees(F.rms_norm(x + y, (24,), eps=1e-12), "y")
    file.assert_agrees(weights_of(module, x), "attention")
    assert state.k.shape == (B, 1, T, 12)
    assert state.v.shape == (B, 1, T, 40)


def weights_of(module: GAU, x: Tensor) -> Tensor:
    """A (B, T, T), read off by values that are the rows of an identity."""
    B, T, _ = x.shape
    layout = Layout.of(B, T)
    seen: list[Tensor] = []

    def mix(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
        eye = torch.eye(T, dtype=v.dtype).expand(B, T, T)
        seen.append(GAU.mix(module, q, k, eye, *rest)[0])
        return GAU.mix(module, q, k, v, *rest)

    module.mix = mix  # type: ignore[method-assign]
    module(x, None, layout)
    del module.mix
    return seen[0]


def test_a_token_alone_is_a_gated_linear_unit() -> None:
    """A = 1, the first of the two limits that the unit joins."""
    module, x = build("gau", {"key_width": 8}), text(5, 1)
    y, _ = module(x, None, Layout.of(5, 1))
    unit = module.unit
    want = unit.o_proj(F.silu(unit.u_proj(x)) * F.silu(unit.v_proj(x)))  # type: ignore[operator,union-attr]
    torch.testing.assert_close(y, want)


@pytest.mark.parametrize("kernel", ["softmax_plus", "relu2", "laplace"])
def test_with_an_open_gate_it_is_attention_with_one_head(kernel: str) -> None:
    """u = 1, the other limit."""
    module = build("gau", {"key_width": 8, "bias": True, "kernel": kernel, "position": "none"})
    unit: Any = module.unit
    with torch.no_grad():
        unit.u_proj.weight.zero_()
        unit.u_proj.bias.fill_(1.2784645427610738)  # swish of it is 1
    T = 9
    x = text(2, T)
    y, _ = module(x, None, Layout.of(2, T))
    z = F.silu(unit.z_proj(x))
    q, k = (z * unit.gamma[i] + unit.beta[i] for i in range(2))
    scores, visible = q @ k.mT, torch.arange(1.0, T + 1, dtype=torch.float64)[:, None]
    if kernel == "softmax_plus":
        scores = scores / 8**0.5 * visible.log() / math.log(512)
        future = torch.ones(T, T).triu(1).bool()
        A = scores.masked_fill(future, -torch.inf).softmax(-1)
    elif kernel == "relu2":
        A = (scores / 8**0.5).relu().square().tril() / visible
    else:
        mean, deviation = 0.5**0.5, (4 * math.pi) ** -0.5
        A = torch.distributions.Normal(mean, deviation).cdf(scores / visible).tril()
    torch.testing.assert_close(y, unit.o_proj(A @ F.silu(unit.v_proj(x))))


def test_the_factor_is_one_at_512_tokens_and_has_a_floor() -> None:
    layout = Layout.of(1, 600)
    plain, floored = (
        GAUConfig(key_width=4, floor=floor).build(D).scale(layout)[0, :, 0] for floor in (1, 16)
    )
    assert plain[511] == 1
    assert plain[0] == 0
    assert floored[0] == floored[15] == plain[15]
    assert plain[15].item() == pytest.approx(math.log(16) / math.log(512))
    assert torch.equal(floored[15:], plain[15:])


def test_rows_of_weights_sum_to_one_and_spread_out_more_slowly_than_without_the_factor() -> None:
    module = build("gau", {"key_width": 32, "position": "none"})
    assert isinstance(module, GAU)
    A = weights_of(module, text(4, 512))
    torch.testing.assert_close(A.sum(-1), torch.ones(4, 512, dtype=torch.float64))
    growth = []
    logits = A.log()
    factor = module.scale(Layout.of(1, 512))
    for weights in (A, (logits / factor.clamp(min=1e-9)).softmax(-1)):
        entropy = -torch.special.xlogy(weights, weights).sum(-1).mean(0)
        growth.append(entropy[448:].mean() - entropy[64:128].mean())
    assert growth[0] < growth[1]


def test_a_longer_text_changes_nothing_before_with_either_n() -> None:
    for n in (None, 7):
        module, x = build("gau", {"key_width": 4, "kernel": "relu2", "n": n}), text(1, 20)
        whole, _ = module(x, None, Layout.of(1, 20))
        part, _ = module(x[:, :11], None, Layout.of(1, 11))
        torch.testing.assert_close(part, whole[:, :11])


def test_at_initialisation_the_branch_is_about_a_hundredth_of_its_input() -> None:
    """`|GAU(x)| = s nu^6 / n |x|` with nu^2 = 0.3557 (Su 2022, kexue.fm/archives/8990)."""
    T, d = 512, 128
    torch.manual_seed(0)
    module = GAUConfig(kernel="relu2", n=512).build(d)
    x = torch.randn(2, T, d)
    with torch.no_grad():
        y, _ = module(x, None, Layout.of(2, T))
    ratio = (y.norm() / x.norm()).item()
    want = 128 * 0.3557**3 / 512
    assert want / 3 < ratio < 3 * want


@torch.no_grad()
def test_seven_factors_are_weights() -> None:
    """Doubling all of them multiplies a small branch by 2^7: u, v, four in the scores, and o."""
    module = GAUConfig(key_width=8, kernel="relu2", n=9).build(D).double()
    sizes = []
    for scale in (1e-3, 2.0):
        for name, parameter in module.named_parameters():
            if name.endswith("weight"):
                parameter.data.mul_(scale)
        sizes.append(module(text(2, 9), None, Layout.of(2, 9))[0].norm())
    assert sizes[1] / sizes[0] == pytest.approx(2**7, rel=0.05)


@torch.no_grad()
def test_initial_deviations_are_the_stated_ones() -> None:
    torch.manual_seed(0)
    module = GAUConfig(width=96, key_width=64).build(256)
    module.reset_parameters(1.0, Depth(3, 8))
    for proj in (module.unit.u_proj, module.unit.o_proj):
        std = proj.weight.std() * proj.in_features**0.5
        assert std == pytest.approx(8 ** (-1 / 3), rel=0.02)
        assert proj.weight.abs().max() <= 2 * 1.13684723 * proj.in_features**-0.5 / 2 + 1e-6
    module = GAUConfig(width=96, key_width=64, init="gau", bias=True).build(256)
    assert module.unit.u_proj.weight.std() == pytest.approx(0.02, rel=0.02)
    assert module.unit.gamma.std() == pytest.approx(0.02, rel=0.2)
    assert module.unit.beta is not None
    assert not module.unit.beta.any()


@pytest.mark.parametrize("kernel", ["softmax_plus", "relu2"])
@torch.no_grad()
def test_an_opened_state_steps_as_a_plain_one(kernel: str) -> None:
    module, x = build("gau", {"key_width": 8, "kernel": kernel}), text(2, 8)
    assert isinstance(module, GAU)
    want, whole = module(x, None, Layout.of(2, 8))
    first, state = module(x[:, :5], None, Layout.of(2, 5))
    opened, outputs = module.open_state(state, 3), [first]  # type: ignore[arg-type]
    assert isinstance(opened, StaticCache) == (kernel == "softmax_plus")
    for t in range(5, 8):
        layout = Layout.of(2, 1, position=torch.full((2,), t))
        y, opened = module(x[:, t : t + 1], opened, layout)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), want)
    torch.testing.assert_close(list(module.close_state(opened)), list(whole))


@pytest.mark.parametrize("kernel", ["softmax_plus", "relu2", "laplace"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gives_finite_outputs(kernel: str, dtype: torch.dtype) -> None:
    module = build("gau", {"key_width": 8, "kernel": kernel})
    exact, _ = module(text(2, 40), None, Layout.of(2, 40))
    y, _ = module.to(dtype)(text(2, 40).to(dtype), None, Layout.of(2, 40))
    assert y.dtype == dtype
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


def test_gains_and_offsets_of_keys_do_not_decay() -> None:
    module = build("gau", {"key_width": 8, "bias": True})
    projections = {f"unit.{name}_proj.weight" for name in "uvzo"}
    assert decayed_parameters(module) == projections


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match=r"key_width \(7\) must be positive, and even because"):
        GAUConfig(key_width=7)
    with pytest.raises(ValueError, match=r"width \(0\) must be at least 1; None means 2 d_model"):
        GAUConfig(width=0)
    with pytest.raises(ValueError, match=r"n \(512\) must be a positive number, and softmax_plus"):
        GAUConfig(n=512)
    with pytest.raises(ValueError, match=r"n \(0\) must be"):
        GAUConfig(n=0, kernel="relu2")
    with pytest.raises(ValueError, match=r"floor \(16\) must be at least 1 and belongs to softm"):
        GAUConfig(floor=16, kernel="relu2")
    assert GAUConfig(key_width=7, position="none").build(D).width == 2 * D
