"""Parameters whose digits survive a cast of the model."""

import torch
from torch import nn

from retnet.mixers.precise import PreciseParameters


class Decay(PreciseParameters):
    precise = ("log_rate",)

    def __init__(self) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.tensor([-9.001, 0.3]))
        self.linear = nn.Linear(2, 2)


def test_a_cast_to_half_precision_leaves_precise_parameters_as_they_are() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        inner = Decay()
        parameter = inner.log_rate
        before = parameter.detach().clone()
        nn.Sequential(inner).to(dtype)
        assert inner.log_rate is parameter  # an optimizer that holds it still does
        assert torch.equal(parameter, before)
        assert inner.linear.weight.dtype == dtype


def test_a_cast_to_more_digits_and_a_move_are_obeyed() -> None:
    module = Decay().double()
    assert module.log_rate.dtype == torch.float64
    assert module.to("meta").log_rate.is_meta


def test_a_cast_from_float64_to_half_precision_stops_at_what_there_was() -> None:
    module = Decay().double()
    before = module.log_rate.detach().clone()
    assert torch.equal(module.half().log_rate, before)
