"""What AFT promises beyond the contract of all branches."""

import pytest
import torch
from torch import Tensor

from golden_files import golden
from mixers.cases import D, build
from retnet.mixers.aft import AFT, AFTConfig
from retnet.ops import Layout
from retnet.train.optimizer import decayed_parameters

dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def loaded(config: AFTConfig, name: str, prefixes: dict[str, str], dtype: torch.dtype) -> AFT:
    """A layer with a golden file's weights; the bias of keys cancels, and ours have none."""
    file = golden(name)
    weights = {
        f"{ours}_proj.{part}": file.arrays[f"w.{theirs}.{part}"]
        for ours, theirs in prefixes.items()
        for part in ("weight", "bias")
        if (ours, part) != ("k", "bias")
    }
    if config.variant == "full":
        weights["position_bias.weight"] = file.arrays["w.wbias"]
    if config.variant == "local":
        weights["position_bias.weight"] = by_distance(file.arrays["w.pos_bias"], config.window or 0)
    module = config.build(file.arrays["in.x"].shape[2])
    module.load_state_dict(weights)
    return module.to(dtype)


def by_distance(bias: Tensor, window: int) -> Tensor:
    key = torch.arange(len(bias))[:, None] - torch.arange(window)
    return bias.gather(1, key.clamp(min=0)) * (key >= 0)


PIP = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "project"}


@dtypes
@pytest.mark.parametrize("variant", ["full", "simple"])
def test_outputs_are_those_of_aft_pytorch(variant: str, dtype: torch.dtype) -> None:
    name = f"aft_{variant}"
    max_len = 32 if variant == "full" else None
    config = AFTConfig(variant=variant, max_len=max_len, width=16, bias=True)  # type: ignore[arg-type]
    x = golden(name).arrays["in.x"].to(dtype)
    y, _ = loaded(config, name, PIP, dtype)(x, None, Layout.of(2, 25))
    golden(name).assert_agrees(y, "y")


@dtypes
def test_outputs_are_those_of_labml(dtype: torch.dtype) -> None:
    names = {"q": "query", "k": "key", "v": "value", "o": "output"}
    config = AFTConfig(variant="local", max_len=36, window=5, bias=True)
    x = golden("aft_local").arrays["in.x"].to(dtype)
    y, _ = loaded(config, "aft_local", names, dtype)(x, None, Layout.of(2, 30))
    golden("aft_local").assert_agrees(y, "y")


def test_equal_tokens_give_equal_outputs() -> None:
    """A mean of equal values is that value: the layer alone cannot count."""
    x = torch.randn(1, 1, D, dtype=torch.float64).expand(1, 12, D)
    for given in ({}, {"variant": "full", "max_len": 12}):
        y, _ = build("aft", given)(x, None, Layout.of(1, 12))
        torch.testing.assert_close(y, y[:, :1].expand_as(y))


def test_position_biases_stay_float32_in_a_model_of_half_precision() -> None:
    for given in ({"variant": "local", "window": 3}, {"variant": "full"}):
        module = AFTConfig(**given, max_len=50).build(D)  # type: ignore[arg-type]
        exact, _ = module(torch.ones(1, 40, D), None, Layout.of(1, 40))
        y, _ = module.bfloat16()(torch.ones(1, 40, D).bfloat16(), None, Layout.of(1, 40))
        assert module.position_bias is not None
        assert module.position_bias.weight.dtype == torch.float32
        assert y.dtype == torch.bfloat16
        assert (y - exact).abs().max() < 0.05 * exact.abs().max()


def test_position_biases_do_not_decay() -> None:
    module = build("aft", {"variant": "full", "max_len": 8})
    assert decayed_parameters(module) == {f"{name}_proj.weight" for name in "qkvo"}


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match=r'variant "full" needs max_len; set it, or take variant'):
        AFTConfig(variant="full")
    with pytest.raises(ValueError, match=r'variant "local" needs window'):
        AFTConfig(variant="local", max_len=8)
    with pytest.raises(ValueError, match=r'variant "simple" has no max_len \(8\); leave it out'):
        AFTConfig(max_len=8)
    with pytest.raises(ValueError, match=r'variant "full" has no window \(3\)'):
        AFTConfig(variant="full", max_len=8, window=3)
    with pytest.raises(ValueError, match=r"width \(0\) must be at least 1"):
        AFTConfig(width=0)
