"""Gated multi-scale retention, written out once more, slowly."""

import logging
import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from retnet.mixers.retention import Retention, RetentionConfig, log_decays
from retnet.ops import Layout
from retnet.ops.rotation import frequencies
from retnet.types import Form

D, T = 12, 11
SMALL = RetentionConfig(num_heads=3)


def layer(config: RetentionConfig, dtype: torch.dtype = torch.float64) -> Retention:
    torch.manual_seed(3)
    module = config.build(D).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def linear(projection: nn.Linear, x: Tensor) -> Tensor:
    y = x @ projection.weight.T
    return y if projection.bias is None else y + projection.bias


def by_definition(module: Retention, x: Tensor) -> Tensor:
    """One head, one token at a time; rotation as products of complex numbers."""
    c = module.config
    (B, T, _), H = x.shape, c.num_heads
    q, k, v = (linear(p, x) for p in (module.q_proj, module.k_proj, module.v_proj))
    q, k, v = (y.unflatten(-1, (H, -1)) for y in (q, k, v))
    D_k, D_v = q.shape[-1], v.shape[-1]
    decay = log_decays(c.decay, H).exp()
    out = torch.zeros(B, T, H, D_v, dtype=x.dtype)
    for b in range(B):
        for h in range(H):
            for n in range(T):
                total = torch.zeros(D_v, dtype=x.dtype)
                for m in range(n + 1):
                    score = (q[b, n, h] * k[b, m, h]).sum()
                    if c.theta != "none":
                        phase = torch.polar(
                            torch.ones(D_k // 2, dtype=x.dtype), (n - m) * frequencies(c.theta, D_k)
                        )
                        halves = [
                            torch.complex(y[0::2], y[1::2])
                            if c.pairs == "interleaved"
                            else torch.complex(y[: D_k // 2], y[D_k // 2 :])
                            for y in (q[b, n, h], k[b, m, h])
                        ]
                        score = (halves[0] * phase * halves[1].conj()).sum().real
                    total = total + decay[h] ** (n - m) * score * D_k**-0.5 * v[b, m, h]
                if c.score_norm == "scaled":
                    total = total / math.sqrt(sum(float(decay[h]) ** j for j in range(n + 1)))
                out[b, n, h] = total
    if c.head_norm == "layer":
        out = out - out.mean(-1, keepdim=True)
    if c.head_norm != "none":
        out = out / (out.square().mean(-1, keepdim=True) + c.norm_eps).sqrt()
    if module.head_norm_weight is not None:
        out = out * module.head_norm_weight
    y = out.flatten(2)
    if module.g_proj is not None:
        g = linear(module.g_proj, x)
        y = g * torch.sigmoid(g) * y
    return linear(module.o_proj, y)


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "linspace everything": {"decay": "linspace", "theta": "linspace", "pairs": "interleaved"},
    "rope in pairs": {"pairs": "interleaved"},
    "linspace in halves": {"theta": "linspace"},
    "no decay": {"decay": "constant:1"},
    "one decay": {"decay": "constant:0.9"},
    "no rotation": {"theta": "none"},
    "no score norm": {"score_norm": "none", "norm_eps": 1e-2},
    "large eps": {"norm_eps": 1e-2},
    "layer norm": {"head_norm": "layer", "norm_eps": 1e-2},
    "layer norm, no score norm": {"head_norm": "layer", "score_norm": "none"},
    "no head norm": {"head_norm": "none"},
    "neither norm": {"head_norm": "none", "score_norm": "none"},
    "affine": {"head_norm_affine": True},
    "no gate": {"gate": False},
    "biases": {"bias": True},
    "narrow keys": {"key_width": 6, "value_width": 9},
    "D_k equal to D_v": {"value_width": 12},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_layer_is_its_definition(variant: str) -> None:
    """T14, T22: also without decay, and with D_k equal to D_v."""
    module = layer(replace(SMALL, **VARIANTS[variant]))
    x = torch.randn(2, T, D, dtype=torch.float64)
    got, _ = module(x, None, Layout.of(2, T))
    torch.testing.assert_close(got, by_definition(module, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("H", [1, 8, 32, 64])
def test_pow2_decays_are_one_minus_a_power_of_two(H: int) -> None:
    """T14: exactly representable in float64 up to head 47, and below 1 for all 64."""
    logs = log_decays("pow2", H)
    assert logs.dtype == torch.float64
    assert (logs < 0).all()
    assert (logs.diff() > 0).all()
    for h in range(min(H, 40)):
        assert logs[h].item() == pytest.approx(math.log1p(-(2.0 ** (-5 - h))), rel=1e-14)
    assert logs[0].exp().item() == pytest.approx(0.96875)


@pytest.mark.parametrize("H", [2, 8, 32])
def test_linspace_decays_run_from_one_32th_to_one_512th(H: int) -> None:
    missing = -log_decays("linspace", H).expm1()  # 1 - decay
    assert missing[0].item() == pytest.approx(1 / 32)
    assert missing[-1].item() == pytest.approx(1 / 512)
    ratios = missing[1:] / missing[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))


def test_linspace_decays_may_run_from_other_lengths_to_others() -> None:
    assert torch.equal(log_decays("linspace:32:512", 5), log_decays("linspace", 5))
    lengths = -1 / log_decays("linspace:2:32", 5).expm1()
    torch.testing.assert_close(lengths, torch.tensor([2.0, 4, 8, 16, 32]).double())
    assert log_decays("linspace:4:64", 1).exp().item() == 0.75


def test_constant_decay_is_the_same_for_all_heads() -> None:
    assert log_decays("constant:1", 3).tolist() == [0, 0, 0]
    torch.testing.assert_close(
        log_decays("constant:0.5", 2), torch.full((2,), -math.log(2), dtype=torch.float64)
    )


@pytest.mark.parametrize(
    "decay",
    [
        *("pow3", "", "constant", "constant:", "constant:0", "constant:2", "constant:0.5:0.5"),
        *("linspace:2", "linspace:1:8", "linspace:8:2", "linspace:2:inf", "linspace:a:b"),
    ],
)
def test_a_decay_that_grows_or_makes_no_sense_is_refused(decay: str) -> None:
    message = rf'decay "{decay}" must be "pow2", "linspace" or "constant:x" with 0 < x <= 1'
    with pytest.raises(ValueError, match=message):
        RetentionConfig(num_heads=2, decay=decay)
    with pytest.raises(ValueError, match="constant:nan"):
        RetentionConfig(num_heads=2, decay="constant:nan")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_heads": 0}, r"num_heads \(0\) must be at least 1"),
        ({"num_heads": 5}, r"key_width \(12\) must be a multiple of num_heads \(5\); change one"),
        (
            {"num_heads": 3, "value_width": 10},
            r"value_width \(10\) must be a multiple of num_heads",
        ),
        (
            {"num_heads": 4},
            r'key_width / num_heads \(3\) must be even.*change one of them or set theta = "none"',
        ),
    ],
)
def test_widths_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    """T15, T22."""
    with pytest.raises(ValueError, match=message):
        RetentionConfig(**given).build(D)


def test_an_odd_key_width_needs_no_rotation() -> None:
    """T22."""
    module = layer(replace(SMALL, num_heads=4, theta="none"))
    x = torch.randn(1, T, D, dtype=torch.float64)
    got, _ = module(x, None, Layout.of(1, T))
    torch.testing.assert_close(got, by_definition(module, x))


def test_the_module_stores_neither_decays_nor_angles() -> None:
    """T10: what is stored follows the module into half precision."""
    assert not list(layer(SMALL).buffers())


@pytest.mark.parametrize("score_norm", ["torchscale", "torchscale_v1"])
def test_the_row_normaliser_falls_back_to_scaled_where_it_cannot_be_had_and_says_so(
    score_norm: str, caplog: pytest.LogCaptureFixture
) -> None:
    from retnet.mixers.retention import _warn_once

    _warn_once.cache_clear()
    official = layer(replace(SMALL, score_norm=cast(Any, score_norm), norm_eps=1e-2))
    with torch.no_grad():
        official.q_proj.weight.mul_(8)  # so that rows need normalising
    scaled = replace(SMALL, norm_eps=1e-2).build(D).double()
    scaled.load_state_dict(official.state_dict())
    x = torch.randn(2, T, D, dtype=torch.float64)
    layout = Layout.of(2, T)
    with caplog.at_level(logging.WARNING, "retnet.mixers.retention"):
        for _ in range(3):
            for form in cast(tuple[Form, ...], ("recurrent", "chunkwise")):
                got, _ = official(x, None, layout, form)
                torch.testing.assert_close(got, scaled(x, None, layout, form)[0])
    recurrent = scaled(x, None, layout, "recurrent")[0]
    assert [record.message for record in caplog.records] == [
        f'score_norm "{score_norm}" needs the parallel form of a whole sequence; '
        'this call uses "scaled", as the official recurrent form does'
    ]
    parallel, _ = official(x, None, layout, "parallel")
    assert (parallel - recurrent).abs().max() > 1e-3
    torch.testing.assert_close(official(x, None, layout, "auto")[0], parallel)


def test_official_initialisation_has_its_gains() -> None:
    """T16: Xavier with gain 2^-2.5 on the way in, 2^-1 on the way out."""
    torch.manual_seed(0)
    module = RetentionConfig(num_heads=2, bias=True, head_norm_affine=True).build(64)
    module.reset_parameters(1.0)
    for name, gain in (("q", 2**-2.5), ("k", 2**-2.5), ("v", 2**-2.5), ("g", 2**-2.5), ("o", 0.5)):
        projection = getattr(module, f"{name}_proj")
        bound = gain * math.sqrt(6 / sum(projection.weight.shape))
        assert 0.98 * bound < projection.weight.abs().max() <= bound, name
        assert not projection.bias.any()
    assert module.head_norm_weight is not None
    assert (module.head_norm_weight == 1).all()


def test_gain_scales_values_and_output_only() -> None:
    """DeepNorm and subln shrink or grow v and o, not q, k and the gate."""
    sizes = {}
    for gain in (1.0, 0.25):
        torch.manual_seed(0)
        module = RetentionConfig(num_heads=2).build(16)
        torch.manual_seed(1)
        module.reset_parameters(gain)
        for name in "qkvgo":
            sizes[name, gain] = getattr(module, f"{name}_proj").weight.std().item()
    for name in "qkvgo":
        ratio = sizes[name, 0.25] / sizes[name, 1.0]
        assert ratio == pytest.approx(0.25 if name in "vo" else 1.0), name
