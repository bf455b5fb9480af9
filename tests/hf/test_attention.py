"""A decoder with attention in `transformers`: our state in its cache, although it grows."""

from typing import Any

import pytest
import torch

from hf.shared import load
from model.small import V, config, decoder, tokens
from retnet.hf import RetNetCache, RetNetDecoderForCausalLM
from retnet.hub import save_checkpoint
from retnet.mixers.attention import AttentionConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import DecoderConfig, LayerConfig

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None}


@pytest.fixture(scope="module")
def model(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> RetNetDecoderForCausalLM:
    mixers = AttentionConfig(num_heads=4, num_kv_heads=2), RetentionConfig(num_heads=2)
    described = DecoderConfig(
        d_model=16,
        layers=tuple(
            LayerConfig(mixer=mixer, channel=config().layers[0].channel) for mixer in mixers
        ),
        vocab_size=tokenizer.vocab_size,
    )
    path = tmp_path_factory.mktemp("attention")
    save_checkpoint(path, decoder(described, torch.float32), tokenizer)
    return load(path, dtype=torch.float64)


def test_padded_rows_and_beams_generate_what_they_do_without_a_cache(
    model: RetNetDecoderForCausalLM,
) -> None:
    lengths = torch.tensor([3, 8, 5])
    ids = tokens(3, 8, vocab_size=V)
    mask = (torch.arange(8) >= 8 - lengths[:, None]).long()
    for how in ({}, {"num_beams": 3, "num_return_sequences": 2}, {"prefill_chunk_size": 3}):
        given = GREEDY | how | {"attention_mask": mask}
        cached = model.generate(ids, **given)
        given.pop("prefill_chunk_size", None)
        assert cached.equal(model.generate(ids, use_cache=False, **given))


def test_a_cache_is_copied_and_gone_on_with(model: RetNetDecoderForCausalLM) -> None:
    ids, more = tokens(2, 5), tokens(2, 3, seed=2)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        assert isinstance(cache, RetNetCache)
        fork = cache.copy()
        want = model(torch.cat([ids, more], 1)).logits[:, 5:]
        for each in (cache, fork):
            torch.testing.assert_close(model(more, past_key_values=each).logits, want)
