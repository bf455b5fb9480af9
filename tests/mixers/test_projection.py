from copy import deepcopy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from retnet.mixers.projection import FEW_ROWS, JointLinear

WIDTHS = {"a": 3, "b": 5, "c": 2}


class Owner(nn.Module):
    a: Any
    b: Any
    c: Any
    joint: JointLinear


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
            got = JointLinear(*WIDTHS)(owner, x)
        for y, name in zip(got, WIDTHS, strict=True):
            torch.testing.assert_close(y, getattr(owner, name)(x), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_layers(owner: Owner) -> None:
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    leaves = [x, *owner.parameters()]
    weights = [torch.randn(9, width, dtype=torch.float64) for width in WIDTHS.values()]
    joint = JointLinear(*WIDTHS)(owner, x)
    apart = [getattr(owner, name)(x) for name in WIDTHS]
    got, want = (torch.autograd.grad(list(ys), leaves, weights) for ys in (joint, apart))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_layer_in_the_place_of_a_linear_one_is_called(owner: Owner) -> None:
    owner.b = nn.Sequential(owner.b, nn.Tanh())
    x = torch.randn(FEW_ROWS, 4, dtype=torch.float64)
    _, b, _ = JointLinear(*WIDTHS)(owner, x)
    torch.testing.assert_close(b, owner.b(x))


def test_hooks_are_called(owner: Owner) -> None:
    seen = []
    owner.c.register_forward_hook(lambda *_: seen.append("c"))
    JointLinear(*WIDTHS)(owner, torch.randn(FEW_ROWS, 4, dtype=torch.float64))
    assert seen == ["c"]


def test_another_forward_of_a_layer_is_called(owner: Owner) -> None:
    """That of a library that keeps weights elsewhere and brings them for the call."""
    x = torch.randn(FEW_ROWS, 4, dtype=torch.float64)
    weights = deepcopy(owner.a)
    owner.a.to("meta").forward = weights.forward
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            a, _, _ = JointLinear(*WIDTHS)(owner, x)
        torch.testing.assert_close(a, weights(x))


def test_weights_of_another_type_are_left_to_their_layer(owner: Owner) -> None:
    class Quantized(Tensor):
        seen: ClassVar[list[str]] = []

        @classmethod
        def __torch_function__(
            cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            cls.seen.append(function.__name__)
            return super().__torch_function__(function, types, args, kwargs)

    owner.b.weight = nn.Parameter(owner.b.weight.detach().as_subclass(Quantized))
    Quantized.seen.clear()
    JointLinear(*WIDTHS)(owner, torch.randn(FEW_ROWS, 4, dtype=torch.float64))
    assert "linear" in Quantized.seen
    assert "cat" not in Quantized.seen


def test_a_copy_of_the_module_uses_its_own_layers(owner: Owner) -> None:
    """Data parallelism copies modules as `replica` does here."""
    owner.joint = JointLinear(*WIDTHS)
    replica = owner._replicate_for_data_parallel()
    replica.a = nn.Linear(4, 3).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(replica.joint(replica, x)[0], replica.a(x))
    torch.testing.assert_close(owner.joint(owner, x)[0], owner.a(x))


def test_packed_products_serve_calls_without_gradients_alone(owner: Owner) -> None:
    joint = JointLinear(*WIDTHS)
    owner.float()
    joint.pack(owner, "float32")
    with torch.no_grad():
        x = torch.randn(3, 4)
        want = [getattr(owner, name)(x) for name in WIDTHS]
        next(owner.a.parameters()).zero_()  # the packed copy does not follow
        for y, w in zip(joint(owner, x), want, strict=True):
            torch.testing.assert_close(y, w)
    assert joint(owner, x)[0].grad_fn is not None


def test_only_plain_layers_can_be_packed(owner: Owner) -> None:
    owner.b = nn.Sequential(owner.b)
    with pytest.raises(ValueError, match=r"a, b, c are Linear, Sequential.*merge adapters"):
        JointLinear(*WIDTHS).pack(owner, "bfloat16")
