"""The linear recurrent unit: its start, what it can express, and the reference's numbers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from golden_files import golden
from retnet.mixers.lru import LRU, LRUConfig, LRUState
from retnet.ops import Layout
from retnet.train.optimizer import decayed_parameters, learning_rate_factors

PRECISIONS = (torch.float32, torch.float64)


def run(mixer: LRU, x: Tensor, state: LRUState | None = None) -> tuple[Tensor, LRUState]:
    return mixer(x, state, Layout.of(*x.shape[:2]))


def loaded(weights: dict[str, Tensor], block: Any, dtype: torch.dtype) -> LRU:
    """Our layer with the reference's weights."""
    N, D = weights["B_re"].shape
    mixer = LRUConfig(state_width=N, skip=True, block=block).build(D)
    pairs = torch.stack([weights["B_re"], weights["B_im"]], 1).flatten(0, 1)
    out = torch.stack([weights["C_re"], -weights["C_im"]], 2).flatten(1)
    ours = {name: weights[name] for name in ("nu_log", "theta_log", "gamma_log")}
    ours |= {"in_proj.weight": pairs, "out_proj.weight": out, "skip_weight": weights["D"]}
    for name, ends in (("value_proj", "out1"), ("gate_proj", "out2")):
        if block == "glu":
            ours[f"{name}.weight"] = weights[f"{ends}.kernel"].T
            ours[f"{name}.bias"] = weights[f"{ends}.bias"]
    mixer.load_state_dict(ours)
    return mixer.to(dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_agrees_with_minimal_lru(dtype: torch.dtype) -> None:
    file = golden("lru")
    mixer, x = loaded(file.weights(), "linear", dtype), file.arrays["in.x"].to(dtype)[None]
    y, state = run(mixer, x)
    file.assert_agrees(y[0], "y")
    hidden = []
    for t in range(x.shape[1]):
        _, state = run(mixer, x[:, t : t + 1], state if t else None)
        hidden.append(torch.view_as_complex(state.h))
    file.assert_agrees(torch.cat(hidden), "hidden")


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_block_agrees_with_minimal_lru(dtype: torch.dtype) -> None:
    file = golden("lru_block")
    weights = {key.removeprefix("seq."): x for key, x in file.weights().items()}
    x = file.arrays["in.x"].to(dtype)[None]
    norm = (weights[f"normalization.{name}"].to(dtype) for name in ("scale", "bias"))
    y, _ = run(loaded(weights, "glu", dtype), F.layer_norm(x, x.shape[-1:], *norm, eps=1e-6))
    file.assert_agrees((x + y)[0], "y")


def test_new_factors_are_uniform_on_the_ring() -> None:
    """Kolmogorov and Smirnov's distance at 1 % significance: area is r^2, angle is angle."""
    config = LRUConfig(state_width=20_000, r_min=0.4, r_max=0.8, max_phase=3.0)
    factors = config.build(2).factors().detach()
    size, angle = factors.abs(), factors.angle()
    assert size.min() >= 0.4 - 1e-6
    assert size.max() <= 0.8 + 1e-6
    for value, low, high in ((size**2, 0.16, 0.64), (angle, 0.0, 3.0)):
        uniform = ((value - low) / (high - low)).sort().values
        ranks = torch.arange(1, len(uniform) + 1) / len(uniform)
        assert (uniform - ranks).abs().max() < 1.63 / len(uniform) ** 0.5


@pytest.mark.parametrize("recurrence", ["complex", "real"])
def test_units_are_as_large_as_what_enters_them(recurrence: Any) -> None:
    mixer = LRUConfig(state_width=32, recurrence=recurrence, r_max=0.96).build(16)
    x = torch.randn(512, 150, 16)  # long after 1 / (1 - r)
    with torch.no_grad():
        entering = mixer.inward(mixer, x)[0].square().mean().item()
        _, state = run(mixer, x)
    assert state.h.square().mean().item() / entering == pytest.approx(1.0, abs=0.05)
    assert mixer.parts * entering == pytest.approx(1.0, abs=0.1)


def test_impulse_response_is_a_power_of_the_factor() -> None:
    mixer = LRUConfig(state_width=3).build(1).double()
    x = torch.zeros(1, 50, 1, dtype=torch.float64)
    x[0, 0] = 1.0
    y, _ = run(mixer, x)
    entry = torch.view_as_complex(mixer.in_proj.weight.view(3, 2)) * mixer.gamma_log.exp()
    out = torch.view_as_complex(mixer.out_proj.weight.view(3, 2).contiguous()).conj()
    powers = mixer.factors() ** torch.arange(50, dtype=torch.float64)[:, None]
    want = (out * powers * entry).sum(1).real
    torch.testing.assert_close(y[0, :, 0], want, rtol=1e-10, atol=1e-12)


def test_every_diagonalisable_dense_recurrence_is_one() -> None:
    """h_t = A h_(t-1) + B x_t, y_t = C h_t with A real: A = P Λ P^-1."""
    n, D, T = 6, 4, 40
    A = torch.randn(n, n, dtype=torch.float64)
    A = 0.9 * A / torch.linalg.eigvals(A).abs().max()
    inward, outward = (torch.randn(n, D).double(), torch.randn(D, n).double())
    x = torch.randn(1, T, D, dtype=torch.float64)
    h, want = torch.zeros(n, dtype=torch.float64), []
    for t in range(T):
        h = A @ h + inward @ x[0, t]
        want.append(outward @ h)
    factors, P = torch.linalg.eig(A)
    mixer = LRUConfig(state_width=n).build(D).double()
    entry = torch.linalg.solve(P, inward.to(P.dtype))
    leaving = outward.to(P.dtype) @ P
    with torch.no_grad():
        mixer.nu_log.copy_((-factors.abs().log()).log())
        assert mixer.theta_log is not None
        mixer.theta_log.copy_((factors.angle() % (2 * math.pi)).log())
        mixer.gamma_log.zero_()
        mixer.in_proj.weight.copy_(torch.view_as_real(entry).transpose(1, 2).flatten(0, 1))
        pairs = torch.view_as_real(leaving.conj().resolve_conj())  # (Re, -Im)
        mixer.out_proj.weight.copy_(pairs.flatten(1))
    torch.testing.assert_close(run(mixer, x)[0][0], torch.stack(want), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("nu_log", [-1e4, -30.0, -16.0, 5.0, 1e4])
@pytest.mark.parametrize("recurrence", ["complex", "real"])
def test_factors_stay_below_one_whatever_is_learned(nu_log: float, recurrence: Any) -> None:
    mixer = LRUConfig(state_width=2, recurrence=recurrence).build(3)
    torch.nn.init.constant_(mixer.nu_log, nu_log)
    assert (-mixer.nu_log.clamp(-15.95, 4.4).exp()).exp().max() < 1
    y, _ = run(mixer, torch.randn(1, 20, 3))
    y.square().sum().backward()
    assert mixer.nu_log.grad is not None
    assert mixer.nu_log.grad.isfinite().all()
    if recurrence == "real":
        assert (mixer.factors() < 1).all()
        assert (mixer.factors() >= 0).all()


def test_factors_learn_slower_do_not_decay_and_stay_float32() -> None:
    mixer = LRUConfig().build(4).to(torch.bfloat16)
    names = {"nu_log", "theta_log", "gamma_log"}
    assert learning_rate_factors(mixer) == dict.fromkeys(names, 0.5)
    assert decayed_parameters(mixer) == {"in_proj.weight", "out_proj.weight"}
    assert {n for n, p in mixer.named_parameters() if p.dtype == torch.float32} == names
    y, state = run(mixer, torch.randn(1, 3, 4).bfloat16())
    assert y.dtype == torch.bfloat16
    assert state.h.dtype == torch.float32
    real = LRUConfig(recurrence="real").build(4).to(torch.bfloat16)
    assert real.nu_log.dtype == torch.float32


def test_real_and_complex_units_have_equally_many_parameters() -> None:
    counts = [
        sum(p.ndim == 2 and p.numel() for p in LRUConfig(recurrence=r).build(8).parameters())
        for r in ("complex", "real")
    ]
    assert counts == [4 * 8**2] * 2


def test_autocast_leaves_the_recurrence_in_float32() -> None:
    mixer, x = LRUConfig().build(8), torch.randn(2, 64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = run(mixer, x)
    assert state.h.dtype == torch.float32
    torch.testing.assert_close(y.float(), run(mixer, x)[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"state_width": 0}, r"state_width \(0\)"),
        ({"r_min": 0.9, "r_max": 0.9}, r"r_min \(0.9\) and r_max \(0.9\)"),
        ({"r_max": 1.0}, "0 <= r_min < r_max < 1"),
        ({"max_phase": 7.0}, r"max_phase \(7.0\)"),
    ],
)
def test_config_refuses(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        LRUConfig(**given)
