import pytest
import torch
from torch import nn

from retnet.mixers.projection import FEW_ROWS, JointLinear

WIDTHS = {"a": 3, "b": 5, "c": 2}


class Owner(nn.Module):
    a: nn.Module
    b: nn.Module
    c: nn.Module


@pytest.fixture(params=[False, True], ids=["plain", "biases"])
def owner(request: pytest.FixtureRequest) -> Owner:
    torch.manual_seed(0)
    module = Owner()
    for name, width in WIDTHS.items():
        setattr(module, name, nn.Linear(4, width, bias=request.param).double())
    return module


@pytest.mark.parametrize("rows", [1, 7, FEW_ROWS + 1])
def test_a_joint_product_is_each_layers_product(owner: Owner, rows: int) -> None:
    x = torch.randn(rows, 4, dtype=torch.float64)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            got = JointLinear(owner, tuple(WIDTHS))(x)
        for y, name in zip(got, WIDTHS, strict=True):
            torch.testing.assert_close(y, getattr(owner, name)(x), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_layers(owner: Owner) -> None:
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    leaves = [x, *owner.parameters()]
    weights = [torch.randn(9, width, dtype=torch.float64) for width in WIDTHS.values()]
    joint = JointLinear(owner, tuple(WIDTHS))(x)
    apart = [getattr(owner, name)(x) for name in WIDTHS]
    got, want = (torch.autograd.grad(list(ys), leaves, weights) for ys in (joint, apart))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_layer_in_the_place_of_a_linear_one_is_called(owner: Owner) -> None:
    owner.b = nn.Sequential(owner.b, nn.Tanh())
    x = torch.randn(FEW_ROWS, 4, dtype=torch.float64)
    _, b, _ = JointLinear(owner, tuple(WIDTHS))(x)
    torch.testing.assert_close(b, owner.b(x))


def test_hooks_are_called(owner: Owner) -> None:
    seen = []
    owner.c.register_forward_hook(lambda *_: seen.append("c"))
    JointLinear(owner, tuple(WIDTHS))(torch.randn(FEW_ROWS, 4, dtype=torch.float64))
    assert seen == ["c"]


def test_packed_products_serve_calls_without_gradients_alone(owner: Owner) -> None:
    joint = JointLinear(owner, tuple(WIDTHS))
    owner.float()
    joint.pack("float32")
    with torch.no_grad():
        x = torch.randn(3, 4)
        want = [getattr(owner, name)(x) for name in WIDTHS]
        next(owner.a.parameters()).zero_()  # the packed copy does not follow
        for y, w in zip(joint(x), want, strict=True):
            torch.testing.assert_close(y, w)
    assert joint(x)[0].grad_fn is not None


def test_only_plain_layers_can_be_packed(owner: Owner) -> None:
    owner.b = nn.Sequential(owner.b)
    with pytest.raises(ValueError, match=r"a, b, c are Linear, Sequential.*merge adapters"):
        JointLinear(owner, tuple(WIDTHS)).pack("bfloat16")
