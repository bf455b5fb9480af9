"""What products compute again instead of keeping it: equal gradients from fewer tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from retnet.ops import blocks
from retnet.ops.gate import gated, gated_rms_norm
from retnet.ops.linear import products
from retnet.ops.norm import add_rms_norm
from retnet.ops.recompute import recomputation, side_by_side
from support import kept_bytes

B, T, H, D = 2, 6, 3, 4
WIDTH = H * D


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def _flat_gate(a: Tensor, b: Tensor) -> Tensor:
    shape = (B, T, H, D)
    return side_by_side(gated_rms_norm(a.view(shape), b.view(shape), 1e-6))


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


@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
def test_so_are_those_of_training_in_bfloat16(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    stream, branch = _draw(B, T, WIDTH).float(), _draw(B, T, WIDTH).bfloat16()
    weight = _draw(WIDTH).float()
    made = [
        *add_rms_norm(stream, branch, weight, 1e-6, torch.bfloat16),
        gated_rms_norm(stream.view(B, T, H, D), branch.view(B, T, H, D), torch.rand(1, T, H, 1)),
    ]
    for x in made:
        again = recomputation(x)
        assert again is not None
        assert again().dtype == x.dtype
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


def test_what_was_changed_in_place_is_kept(made: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A hook that silences some features, say: their weights have no gradient then."""
    a, b, weight = _draw(B, T, WIDTH), _draw(B, T, WIDTH), _draw(5, WIDTH)
    x = made(a, b)
    with torch.no_grad():
        x[..., :D] = 0
    assert recomputation(x) is None
    (d_weight,) = torch.autograd.grad(products(x, weight)[0].sum(), weight)
    assert (d_weight[:, :D] == 0).all()
    assert (d_weight[:, D:] != 0).all()


@pytest.mark.parametrize("as_rows", [False, True])
def test_a_checkpoint_within_a_checkpoint_has_the_same_gradients(
    made: Callable[[Tensor, Tensor], Tensor], as_rows: bool
) -> None:
    """What the inner one begins with is packed and unpacked by the outer one."""
    arguments = [_draw(B, T, WIDTH), _draw(B, T, WIDTH), _draw(WIDTH, WIDTH)]

    def outer(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        x = made(a, b)
        x = x.view(-1, WIDTH) if as_rows else x
        return checkpoint(lambda x, w: products(x, w)[0], x, weight, use_reentrant=False)  # type: ignore[return-value]

    wanted = torch.autograd.grad((made(*arguments[:2]) @ arguments[2].mT).sum(), arguments)
    y = checkpoint(outer, *arguments, use_reentrant=False)
    assert isinstance(y, Tensor)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), arguments), wanted)


def test_part_of_a_result_is_kept() -> None:
    x = gated(_draw(B, T, WIDTH), _draw(B, T, WIDTH))
    for part in (x[..., :D], x[:1], x.mT, x.view(-1, WIDTH)):
        assert recomputation(part) is None


def _kept(x: Tensor, weight: Tensor) -> set[int]:
    """Where the tensors lie that a product keeps."""
    return set(kept_bytes(lambda: products(x, weight)))
