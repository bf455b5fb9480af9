import math

import pytest
import torch
from torch.nn import functional as F

from retnet.evaluate.losses import Tally, mean_interval, token_nats
from retnet.model import Decoder, preset
from retnet.ops.cross_entropy import IGNORED


def test_losses_are_those_of_each_target_in_any_number_of_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Decoder(preset("small-1m", vocab_size=50))
    hidden = torch.randn(7, model.config.d_model)
    targets = torch.tensor([3, IGNORED, 49, 0, IGNORED, 7, 7])
    with torch.inference_mode():
        expected = F.cross_entropy(
            model.head(hidden), targets, reduction="none", ignore_index=IGNORED
        )
        assert torch.allclose(token_nats(model, hidden, targets), expected)
        monkeypatch.setattr("retnet.evaluate.losses.LOGITS", 100)
        assert torch.allclose(token_nats(model, hidden, targets), expected)


def test_losses_are_tallied_by_what_was_read_before() -> None:
    tally = Tally()
    nats = torch.tensor([[1.0, 2.0, 3.0, 5.0, 99.0], [10.0, 20.0, 30.0, 40.0, 50.0]])
    read = torch.tensor([[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]])
    mask = torch.ones_like(read).bool()
    mask[0, 4] = False
    tally.add(nats, read, mask)
    assert tally.num_tokens == 9
    assert tally.nats == 161
    found = tally.by_position()
    assert [(p.first, p.last, p.num_tokens, p.nats) for p in found] == [
        (0, 0, 1, 1.0),
        (1, 1, 1, 2.0),
        (2, 3, 2, 4.0),
        (4, 7, 4, 25.0),
        (8, 15, 1, 50.0),
    ]
    assert math.isclose(found[2].standard_error, math.sqrt(1 / 2))


@pytest.mark.parametrize(
    ("count", "quantile"), [(2, 12.706), (11, 2.228), (12, 2.201), (31, 2.042), (121, 1.980)]
)
def test_intervals_are_students(count: int, quantile: float) -> None:
    values = [float(i % 2) for i in range(count)]
    mean, low, high = mean_interval(values)
    error = torch.tensor(values).double().std().item() / math.sqrt(count)
    assert math.isclose(mean, sum(values) / count)
    assert math.isclose((high - mean) / error, quantile, rel_tol=1e-3)
    assert math.isclose(mean - low, high - mean)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match="needs at least 2 values, and there are 1"):
        mean_interval([1.0])
