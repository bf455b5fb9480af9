import pytest
import torch

from bench.gpu.benches import CPU
from retnet.bench.gpu.cases import DECODE, QUICK_DECODE, TRAINS
from retnet.bench.gpu.models import WHO, build, configs, num_parameters
from retnet.model import DecoderConfig


@pytest.mark.parametrize("config", [TRAINS[0].config, DECODE.config], ids=["1.3b", "6.7b"])
def test_attention_in_retentions_place_has_as_many_parameters(config: DecoderConfig) -> None:
    both = configs(config)
    sizes = [num_parameters(both[who]) for who in WHO]
    assert sizes[0] == pytest.approx(sizes[1], rel=2e-3)
    assert both[WHO[1]].num_layers == config.num_layers


def test_a_model_is_made_in_its_dtype_and_the_default_is_left_as_it_was() -> None:
    model = build(QUICK_DECODE.config, CPU, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
