"""What H3 promises beyond the contract of all branches."""

import pytest
import torch
from torch import Tensor

from golden_files import golden
from mixers.cases import D, build
from retnet.mixers.h3 import H3, H3Config
from retnet.ops import Layout
from retnet.ops.diagonal_ssm import bilinear, impulse_response
from retnet.types import FormChoice

FORMS: tuple[FormChoice, ...] = ("auto", "parallel", "chunkwise", "recurrent")
DTYPES = (torch.float64, torch.float32)

NAMES = {
    "ssm_k_kernel.kernel.C": "shift",
    "ssm_k_D": "shift_skip",
    "D": "skip",
    "kernel.kernel.C": "systems.C",
    "kernel.kernel.log_dt": "systems.log_step",
    "kernel.kernel.inv_A_real": "systems.log_decay_rate",
    "kernel.kernel.A_imag": "systems.frequency",
    "kernel.kernel.B": "B",
    "output_linear.weight": "o_proj.weight",
    "output_linear.bias": "o_proj.bias",
}


def reference(name: str, dtype: torch.dtype) -> H3:
    """Ours with the weights of the reference implementation."""
    config, weights = golden(name).config, golden(name).weights()
    p = config["head_dim"]
    module = H3Config(
        head_dim=p, state_size=config["d_state"], shift_taps=config["shift_taps"]
    ).build(config["d_model"])
    shift = weights.pop("ssm_k_kernel.kernel.B")  # the shift system's input: the first tap only
    assert torch.equal(shift, torch.eye(*shift.shape)[:1].expand_as(shift))
    for key in ("ssm_k_kernel.kernel.C", "kernel.kernel.C"):
        weights[key] = weights[key][0]
    # it has heads inside, (position in head, head), where we have (head, position in head)
    columns = weights["output_linear.weight"].unflatten(1, (p, -1))
    weights["output_linear.weight"] = columns.transpose(1, 2).flatten(1)
    module.load_state_dict({NAMES.get(key, key): x for key, x in weights.items()})
    return module.to(dtype)


def text(B: int, T: int) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["h3", "h3_heads"])
@torch.no_grad()
def test_every_form_is_the_reference_implementation(
    name: str, dtype: torch.dtype, form: FormChoice
) -> None:
    x = golden(name).arrays["in.x"].to(dtype)
    y, _ = reference(name, dtype)(x, None, Layout.of(*x.shape[:2]), form)
    golden(name).assert_agrees(y, "y")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["h3", "h3_heads"])
@torch.no_grad()
def test_steps_after_a_prefill_are_the_reference_implementation(
    name: str, dtype: torch.dtype
) -> None:
    """Its own step fails for heads of several channels, so those are judged by its whole pass."""
    file, module = golden(name), reference(name, dtype)
    x = file.arrays["in.x"].to(dtype)
    B, T = x.shape[:2]
    prefill = file.config["prefill"]
    y, state = module(x[:, :prefill], None, Layout.of(B, prefill))
    outputs = [y]
    for t in range(prefill, T):
        layout = Layout.of(B, 1, position=torch.full((B,), t))
        y, state = module(x[:, t : t + 1], state, layout)
        outputs.append(y)
    file.assert_agrees(torch.cat(outputs, 1), "y_step" if name == "h3" else "y")
    if name == "h3":
        file.assert_agrees(torch.view_as_complex(state.h)[:, :, 0], "state_diag")
        taps = (file.arrays[f"out{'64' if dtype == torch.float64 else ''}.state_shift"])[..., :-1]
        limit = 1e-9 if dtype == torch.float64 else file.tol["state_shift"]
        assert (state.k.flip(1).mT - taps).abs().max() < limit  # of its oldest no one asks again


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["h3", "h3_heads"])
@torch.no_grad()
def test_both_kernels_are_those_of_the_reference_implementation(
    name: str, dtype: torch.dtype
) -> None:
    file, module = golden(name), reference(name, dtype)
    T, taps = file.config["T"], file.config["shift_taps"]
    ssm = module.systems(bilinear, module.B)
    file.assert_agrees(impulse_response(ssm, T), "diag_kernel")
    file.assert_agrees(torch.nn.functional.pad(module.shift, (0, T - taps)), "shift_kernel")


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_key_is_forgotten_by_the_shift_after_its_taps(form: FormChoice) -> None:
    """With systems that remember nothing, a token reaches as far as there are taps."""
    module = build("h3", {"head_dim": 3, "state_size": 4, "shift_taps": 5})
    assert isinstance(module, H3)
    module.systems.log_decay_rate.fill_(20.0)
    module.systems.log_step.fill_(0.0)
    module.B.zero_()
    x = text(1, 12)
    changed = x.clone()
    changed[:, 2] += 1
    layout = Layout.of(1, 12)
    difference = (module(changed, None, layout, form)[0] - module(x, None, layout, form)[0]).abs()
    reached = difference.amax((0, 2)) > 1e-9
    assert reached.tolist() == [False] * 2 + [True] * 5 + [False] * 5


@torch.no_grad()
def test_recall_by_shift_and_memory_as_the_paper_constructs_it() -> None:
    """Which value followed the key that is asked for: H3 with weights chosen by hand.

    Keys and values alternate. Keys are one-hot, so that a value's token sees, one back, its key;
    systems that never forget keep (key, value); the query is the key itself.
    """
    keys = 4
    module = H3Config(head_dim=keys, state_size=2, shift_taps=2).build(keys).double()
    for parameter in module.parameters():
        parameter.zero_()
    eye = torch.eye(keys).double()
    module.o_proj.weight.copy_(eye)
    module.shift[:, 1] = 1  # only the key before
    module.systems.log_decay_rate.fill_(-40.0)  # no decay
    module.systems.C[..., 0] = 0.5
    module.B[..., 0] = 1
    pairs = [(2, 0), (0, 3), (3, 1), (1, 2)]
    k = torch.zeros(1, 9, keys).double()
    v, q = torch.zeros_like(k), torch.zeros_like(k)
    for n, (key, value) in enumerate(pairs):
        k[0, 2 * n, key], v[0, 2 * n + 1, value] = 1, 1
    for form in ("chunkwise", "recurrent"):
        for key, value in pairs:
            q[0, 8] = eye[key]
            o, _ = module.mix(torch.stack([q, k, v], 2), form=form)
            torch.testing.assert_close(o[0, 8], eye[value], rtol=1e-9, atol=1e-9)


def test_a_head_dim_of_one_is_two_convolutions_between_products() -> None:
    module = build("h3", {"head_dim": 1, "state_size": 4, "shift_taps": 3})
    assert isinstance(module, H3)
    x = text(1, 10)
    q, k, v = (proj(x) for proj in (module.q_proj, module.k_proj, module.v_proj))
    kernel = impulse_response(module.systems(bilinear, module.B), 10)
    kernel[:, 0] += module.skip
    shift = module.shift.clone()
    shift[:, 0] += module.shift_skip
    kv = torch.zeros_like(k)
    o = torch.zeros_like(k)
    for t in range(10):
        kv[:, t] = sum(shift[:, j] * k[:, t - j] for j in range(min(3, t + 1))) * v[:, t]
        o[:, t] = q[:, t] * sum(kernel[:, j] * kv[:, t - j] for j in range(t + 1))
    torch.testing.assert_close(module(x, None, Layout.of(1, 10))[0], module.o_proj(o))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_keeps_its_systems_and_its_state_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, x = H3Config(head_dim=4, state_size=8, shift_taps=4).build(D), text(2, 20)
    exact, _ = module.double()(x, None, Layout.of(2, 20))
    y, state = module.float().to(dtype)(x.to(dtype), None, Layout.of(2, 20))
    assert y.dtype == dtype
    kept = (*state, module.B, module.systems.log_step, module.systems.C)
    assert all(leaf.dtype == torch.float32 for leaf in kept)
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match=r"state_size \(5\) must be even and at least 2"):
        H3Config(state_size=5)
    with pytest.raises(ValueError, match=r"step_min \(1.0\) and step_max \(0.1\)"):
        H3Config(step_min=1.0)
    with pytest.raises(ValueError, match=r"head_dim \(0\) must be at least 1; 8 is usual"):
        H3Config(head_dim=0)
    with pytest.raises(ValueError, match=r"shift_taps \(1\) must be at least 2, the newest"):
        H3Config(shift_taps=1)
    with pytest.raises(ValueError, match=r"d_model \(12\) must be a multiple of head_dim \(8\)"):
        H3Config().build(12)
