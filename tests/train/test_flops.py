"""The formula against PyTorch's own count of what runs."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from retnet.hub import from_dict
from retnet.mixers.retention import Retention
from retnet.model import Decoder, DecoderConfig
from retnet.model.scoring import score
from retnet.ops.retention.torch_backend import default_chunk_size
from retnet.train.flops import training_flops_per_token

ROWS = 2

HYBRID = [
    {
        "mixer": {"name": "retention", "num_heads": 2, "value_width": 24},
        "channel": {"name": "ffn", "width": 40, "inner_norm": True},
    },
    {
        "mixer": {
            "name": "retention",
            "num_heads": 1,
            "key_width": 8,
            "gate": False,
            "initial_state": True,
        },
        "channel": {"name": "glu", "width": 20},
    },
]


def decoder(**fields: Any) -> Decoder:
    config = {"d_model": 16, "vocab_size": 50, "layers": HYBRID} | fields
    return Decoder(from_dict(DecoderConfig, config))


def counted(model: Decoder, seq_len: int) -> int:
    tokens = torch.ones(ROWS, seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        score(model, tokens, tokens).nats.backward()
    return counter.get_total_flops()


def progress(model: Decoder, seq_len: int) -> int:
    """What is counted less the scores that retention's backward pass computes once more."""
    mixers = [module for module in model.modules() if isinstance(module, Retention)]
    scores = sum(
        2
        * mixer.config.num_heads
        * min(default_chunk_size(mixer.D_k, mixer.D_v), seq_len)
        * mixer.D_k
        for mixer in mixers
    )
    return counted(model, seq_len) - ROWS * seq_len * scores


@pytest.mark.parametrize("seq_len", [1, 20, 32, 96])  # without, within, one and several chunks
@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": True}, {"residual": "deepnorm"}])
def test_the_formula_is_what_runs(fields: dict[str, Any], seq_len: int) -> None:
    model = decoder(**fields)
    if seq_len == 1:  # there the recurrent form runs: the formula says what the chunkwise one would
        assert training_flops_per_token(model, 1) < training_flops_per_token(model, 20)
        return
    assert progress(model, seq_len) == ROWS * seq_len * training_flops_per_token(model, seq_len)


def test_gradient_checkpointing_is_no_progress() -> None:
    model = decoder()
    plain = training_flops_per_token(model, 32)
    model.gradient_checkpointing = True
    assert training_flops_per_token(model, 32) == plain
    assert counted(model.train(), 32) > ROWS * 32 * plain


def test_weights_that_do_not_learn_need_no_gradient() -> None:
    model = decoder()
    frozen = [m for m in model.layers[1].modules() if isinstance(m, nn.Linear)]
    before = training_flops_per_token(model, 32)
    for module in frozen:
        module.weight.requires_grad_(False)
    after = training_flops_per_token(model, 32)
    assert before - after == 2 * sum(m.weight.numel() for m in frozen)
    assert progress(model, 32) == ROWS * 32 * after
