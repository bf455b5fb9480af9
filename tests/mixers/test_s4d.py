"""What S4D promises beyond the contract of all branches."""

import math

import pytest
import torch

from golden_files import golden
from mixers.cases import D, build
from retnet.mixers.s4d import S4D, S4DConfig
from retnet.ops import Layout
from retnet.ops.diagonal_ssm import impulse_response, zero_order_hold
from retnet.types import FormChoice

FORMS: tuple[FormChoice, ...] = ("auto", "parallel", "chunkwise", "recurrent")


def reference(dtype: torch.dtype) -> S4D:
    """Ours with the weights of the reference implementation."""
    file = golden("s4d")
    names = {
        "D": "D",
        "kernel.C": "systems.C",
        "kernel.log_dt": "systems.log_step",
        "kernel.log_A_real": "systems.log_decay_rate",
        "kernel.A_imag": "systems.frequency",
        "output_linear.0.weight": "o_proj.weight",
        "output_linear.0.bias": "o_proj.bias",
    }
    module = S4DConfig(state_size=file.config["d_state"]).build(file.config["d_model"])
    weights = {names[key]: x.squeeze(-1) for key, x in file.weights().items() if key != "kernel.C"}
    module.load_state_dict(weights | {"systems.C": file.weights()["kernel.C"]})
    return module.to(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@torch.no_grad()
def test_every_form_is_the_reference_implementation(dtype: torch.dtype, form: FormChoice) -> None:
    file, module = golden("s4d"), reference(dtype)
    x = file.arrays["in.x"].mT.to(dtype)  # B T D
    mixed, _ = module.mix(x, form=form)
    file.assert_agrees(mixed.mT, "ssm")
    y, _ = module(x, None, Layout.of(*x.shape[:2]), form)
    file.assert_agrees(y.mT, "y")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_kernel_is_that_of_the_reference_implementation(dtype: torch.dtype) -> None:
    kernel = impulse_response(reference(dtype).systems(zero_order_hold), golden("s4d").config["T"])
    golden("s4d").assert_agrees(kernel, "kernel")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@torch.no_grad()
def test_steps_after_half_a_text_are_the_reference_implementation(dtype: torch.dtype) -> None:
    file, module = golden("s4d"), reference(dtype)
    x = file.arrays["in.x"].mT.to(dtype)
    B, T = x.shape[:2]
    y, state = module(x[:, : T // 2], None, Layout.of(B, T // 2))
    outputs = [y]
    for t in range(T // 2, T):
        layout = Layout.of(B, 1, position=torch.full((B,), t))
        y, state = module(x[:, t : t + 1], state, layout)
        outputs.append(y)
    file.assert_agrees(torch.cat(outputs, 1).mT, "y")


def test_a_system_begins_as_the_paper_says() -> None:
    torch.manual_seed(0)
    module = S4DConfig(state_size=8, step_min=0.01, step_max=0.5).build(300)
    assert torch.allclose(module.systems.log_decay_rate.exp(), torch.tensor(0.5))
    assert torch.allclose(module.systems.frequency, torch.pi * torch.arange(4.0))
    steps = module.systems.log_step.exp()
    assert 0.01 <= steps.min() < 0.012
    assert 0.45 < steps.max() <= 0.5
    middle = math.log(0.01 * 0.5) / 2
    assert abs(steps.log().mean().item() - middle) < 0.15
    assert abs(torch.view_as_complex(module.systems.C).abs().square().mean().item() - 1) < 0.1


def test_systems_stay_stable_whatever_training_does() -> None:
    """Re A < 0: a state of an endless constant input is bounded."""
    torch.manual_seed(0)
    module = S4DConfig(state_size=4).build(D)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for _ in range(20):
        y, _ = module(torch.randn(2, 30, D), None, Layout.of(2, 30))
        (-y.abs().mean()).backward()  # it is asked to explode
        optimizer.step()
        optimizer.zero_grad()
        assert module.systems(zero_order_hold).log_a.real.max() < 0
    assert module.systems(zero_order_hold).log_a.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_keeps_its_systems_and_its_state_in_float32(dtype: torch.dtype) -> None:
    module = build("s4d", {"state_size": 6})
    x = torch.randn(2, 20, D, dtype=torch.float64)
    exact, _ = module(x, None, Layout.of(2, 20))
    module = module.float().to(dtype)
    assert isinstance(module, S4D)
    y, state = module(x.to(dtype), None, Layout.of(2, 20))
    assert y.dtype == dtype
    assert (
        state.h.dtype
        == module.systems.log_step.dtype
        == module.systems.frequency.dtype
        == torch.float32
    )
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_state_is_as_large_after_a_thousand_tokens_as_after_one() -> None:
    module = build("s4d", {"state_size": 6})
    assert isinstance(module, S4D)
    for T in (1, 1000):
        _, state = module(torch.ones(1, T, D, dtype=torch.float64), None, Layout.of(1, T))
        assert state.h.numel() == module.state_size(T) == D * 6


def test_what_cannot_be_built_is_refused() -> None:
    for size in (0, 7):
        with pytest.raises(ValueError, match=rf"state_size \({size}\) must be even and at least 2"):
            S4DConfig(state_size=size)
    with pytest.raises(ValueError, match=r"step_min \(0.1\) and step_max \(0.01\) must be posi"):
        S4DConfig(step_min=0.1, step_max=0.01)
    with pytest.raises(ValueError, match=r"step_min \(0.0\)"):
        S4DConfig(step_min=0.0)
