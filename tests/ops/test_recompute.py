"""What products compute again instead of keeping it: equal gradients from fewer tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from retnet.ops.gate import gated, gated_rms_norm
from retnet.ops.linear import products
from retnet.ops.norm import add_rms_norm
from retnet.ops.recompute import recomputation

B, T, H, D = 2, 6, 3, 4
WIDTH = H * D


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def _flat_gate(a: Tensor, b: Tensor) -> Tensor:
    shape = (B, T, H, D)
    return gated_rms_norm(a.view(shape), b.view(shape), 1e-6).flatten(2)


def _normed(a: Tensor, b: Tensor) -> Tensor:
    return add_rms_norm(a, b, torch.ones(WIDTH, dtype=a.dtype), 1e-6, a.dtype)[1]


INPUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gate": gated,
    "head norm and gate, heads side by side": _flat_gate,
    "residual and norm": _normed,
}


@pytest.fixture(params=INPUTS.values(), ids=list(INPUTS))
def made(request: pytest.FixtureRequest) -> Callable[[Tensor, Tensor], Tensor]:
    return request.param


def test_the_values_are_the_same_to_the_bit(made: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = made(_draw(B, T, WIDTH), _draw(B, T, WIDTH))
    again = recomputation(x)
    assert again is not None
    assert torch.equal(again(), x)


def test_gradients_are_those_of_a_plain_product(made: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b, weight = _draw(B, T, WIDTH), _draw(B, T, WIDTH), _draw(5, WIDTH)
    arguments = [a, b, weight]

    def plainly(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        return made(a, b) @ weight.mT

    def ours(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        return products(made(a, b), weight)[0]

    g = torch.randn(B, T, 5, dtype=torch.float64)
    wanted = torch.autograd.grad(plainly(*arguments), arguments, g)
    y = ours(*arguments)
    for _ in range(2):  # the graph may be used again
        torch.testing.assert_close(torch.autograd.grad(y, arguments, g, retain_graph=True), wanted)
    torch.testing.assert_close(torch.autograd.grad(y, weight, g), wanted[2:])
    saved = checkpoint(ours, *arguments, use_reentrant=False)  # unpacks a saved tensor only once
    assert isinstance(saved, Tensor)
    torch.testing.assert_close(torch.autograd.grad(saved, arguments, g), wanted)


def test_an_input_that_can_be_had_again_is_not_kept(
    made: Callable[[Tensor, Tensor], Tensor],
) -> None:
    a, b, weight = _draw(B, T, WIDTH), _draw(B, T, WIDTH), _draw(5, WIDTH)
    x = made(a, b)
    assert x.untyped_storage().data_ptr() not in _kept(x, weight)
    mine = x.clone()  # by a function that computes nothing again
    assert mine.untyped_storage().data_ptr() in _kept(mine, weight)
    assert mine.untyped_storage().data_ptr() not in _kept(mine, weight.detach())


def test_part_of_a_result_is_kept() -> None:
    x = gated(_draw(B, T, WIDTH), _draw(B, T, WIDTH))
    for part in (x[..., :D], x[:1], x.mT):
        assert recomputation(part) is None


def _kept(x: Tensor, weight: Tensor) -> set[int]:
    """Where the tensors lie that a product keeps."""
    kept: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        products(x, weight)
    return kept
