"""The peak, by a clock that only multiplying moves."""

import pytest
import torch

from retnet.train import peak
from retnet.train.peak import Product, measured_peak, square_product

CPU = torch.device("cpu")


class Machine:
    """Makes a million operations in a millisecond; now and then another program takes half."""

    def __init__(self) -> None:
        self.now = 0.0
        self.products = 0

    def multiply(self) -> None:
        self.products += 1
        self.now += 0.002 if 200 < self.products < 400 else 0.001

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(peak, "time", machine)
    monkeypatch.setattr(peak, "square_product", lambda *_: Product(machine.multiply, 10**6))
    peak._measured_peak.cache_clear()
    monkeypatch.setattr(peak, "_measured_peak", peak._measured_peak.__wrapped__)
    return machine


def test_the_peak_is_the_best_rate_of_a_second_at_most(machine: Machine) -> None:
    assert measured_peak(CPU, torch.float32) == pytest.approx(1e9)
    assert machine.now < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_measured_once_and_leaves_random_numbers_alone(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(peak, "WIDTH", {"cpu": 64})
    monkeypatch.setattr(peak, "ROUND_SECONDS", 0.001)
    monkeypatch.setattr(peak, "BUDGET_SECONDS", 0.002)
    peak._measured_peak.cache_clear()
    before = torch.random.get_rng_state()
    first = measured_peak(CPU, dtype)
    assert first > 0
    assert measured_peak(CPU, dtype) == first
    assert peak._measured_peak.cache_info().misses == 1
    assert torch.equal(torch.random.get_rng_state(), before)
    peak._measured_peak.cache_clear()


def test_a_product_says_how_many_operations_it_is() -> None:
    product = square_product(3, torch.float32, CPU)
    assert product.operations == 54
    result = product.multiply()
    assert isinstance(result, torch.Tensor)
    assert result.shape == (3, 3)
    assert result.std() > 0
