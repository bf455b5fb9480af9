import copy

import pytest
import torch
from torch.nn import functional as F

from retnet.ops.packed_linear import INT8_ROWS, PackedLinear, quantize
from support import assert_within_budget

N, K = 48, 64


def given(rows: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(*rows, K), torch.randn(N, K), torch.randn(N)


@pytest.mark.parametrize("rows", [(1,), (3,), (2, 5), (40,)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_packed_product_is_the_plain_one(rows: tuple[int, ...], bias: bool, kind: str) -> None:
    x, weight, b = given(rows)
    dtype = getattr(torch, kind)
    x, weight, b = x.to(dtype), weight.to(dtype), b.to(dtype) if bias else None
    got = PackedLinear(weight, b, kind)(x)  # type: ignore[arg-type]
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    assert_within_budget(got, F.linear(x, weight, b), exact)


@pytest.mark.parametrize("rows", [1, INT8_ROWS, INT8_ROWS + 1])
def test_eight_bits_serve_few_rows_and_sixteen_the_others(rows: int) -> None:
    x, weight, b = given((rows,))
    whole, scale = quantize(weight)
    eight = F.linear(x.bfloat16().double(), whole.double() * scale.double()[:, None], b.double())
    sixteen = F.linear(x.bfloat16().double(), weight.bfloat16().double(), b.double())
    got = PackedLinear(weight, b, "int8")(x.bfloat16()).double()
    near, far = (eight, sixteen) if rows <= INT8_ROWS else (sixteen, eight)
    assert (got - near).abs().max() < 0.3  # bfloat16 rounds sums of 64 products near 10 to 1/16
    assert (got - near).square().mean() < (got - far).square().mean()


@pytest.mark.parametrize("shape", [(7, 20), (257, 17), (33, 40), (1, 96)])
def test_odd_shapes_are_served_all_the_same(shape: tuple[int, int]) -> None:
    """PyTorch's int8 product gave NaN or crashed for widths such as 17, 20 and 40."""
    torch.manual_seed(0)
    weight, x = torch.randn(shape), torch.randn(2, shape[1]).bfloat16()
    exact = F.linear(x.double(), weight.double())
    got = PackedLinear(weight, None, "int8")(x).double()
    assert got.shape == exact.shape
    assert (got - exact).abs().max() < 0.05 * exact.abs().max()


def test_quantized_weights_are_within_half_a_step_of_their_rows() -> None:
    _, weight, _ = given((1,))
    weight[3] = 0.0
    whole, scale = quantize(weight)
    assert whole.dtype == torch.int8
    error = (whole.float() * scale.float()[:, None] - weight).abs()
    # the scale is rounded to 8 bits, which may clip the largest weight by 1/256 of it
    assert (
        error <= 0.51 * scale.float()[:, None] + weight.abs().amax(-1, keepdim=True) / 256
    ).all()
    assert not whole[3].any()


def test_copies_share_what_never_changes() -> None:
    _, weight, b = given((2,))
    packed = PackedLinear(weight, b, "float32")
    assert copy.deepcopy(packed) is packed


def test_a_weight_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="the weight is on meta; packed products are for CPUs"):
        PackedLinear(torch.empty(4, 4, device="meta"), None, "bfloat16")


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_rows_may_lie_in_any_order_in_memory(kind: str) -> None:
    x, weight, b = given((3,))
    x = x if kind == "float32" else x.bfloat16()
    packed = PackedLinear(weight, b, kind)  # type: ignore[arg-type]
    # to rounding, not to the bit: a BLAS may have another kernel for another order
    rtol = torch.finfo(x.dtype).eps
    torch.testing.assert_close(packed(x.mT.contiguous().mT), packed(x), rtol=rtol, atol=1e-4)
