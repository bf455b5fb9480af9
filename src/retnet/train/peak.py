"""The most that this machine does: what a step's speed is a share of."""

import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

WIDTH = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices: large enough for full speed, small enough for many in a round."""

ROUND_SECONDS = 0.05
"""Shorter rounds would catch moments that no machine keeps up."""

BUDGET_SECONDS = 0.5


class Product(NamedTuple):
    """A product of two square matrices.

    Attributes:
        multiply: start it; on a GPU it returns before the work is done.
        operations: of one product, a multiplication and an addition counted as two.
    """

    multiply: Callable[[], object]
    operations: int


def square_product(width: int, dtype: torch.dtype, device: torch.device) -> Product:
    """A product to measure, of random numbers: a GPU multiplies zeros faster, with less power."""
    numbers = torch.Generator(device).manual_seed(0)  # the global one belongs to the run
    a, b = torch.randn(2, width, width, generator=numbers, device=device).to(dtype)
    out = torch.empty_like(a)
    return Product(lambda: torch.mm(a, b, out=out), 2 * width**3)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a matrix product, the best of half a second.

    The best, not the mean: what another program takes away for a moment is there all the same.
    It is measured once per process, with torch's threads and float32 precision of that moment.

    Args:
        device: where.
        dtype: of the matrices; the one that autocast computes in, under autocast.
    """
    return _measured_peak(device, dtype, torch.get_num_threads())


@cache
def _measured_peak(device: torch.device, dtype: torch.dtype, _threads: int) -> float:
    """As `measured_peak`; with another number of threads it is measured again."""
    product = square_product(WIDTH.get(device.type, WIDTH["cpu"]), dtype, device)
    _seconds(product, 1, device)  # the first call allocates memory and chooses a kernel
    calls = 1
    while _seconds(product, calls, device) < ROUND_SECONDS and calls < 1 << 20:
        calls *= 2
    best, begin = 0.0, time.perf_counter()
    while not best or time.perf_counter() - begin < BUDGET_SECONDS:
        best = max(best, calls * product.operations / _seconds(product, calls, device))
    return best


def _seconds(product: Product, calls: int, device: torch.device) -> float:
    """Time of some products, one after the other."""
    begin = time.perf_counter()
    for _ in range(calls):
        product.multiply()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
