"""Caches of transformers: a text that was begun there goes on here, and back."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from golden_files import FOLDER, golden
from hub.foreign.test_attention_models import TOKENS, llama, mistral, mpt, ours
from retnet.hub import load_checkpoint
from retnet.hub.foreign import convert, convert_state
from retnet.mixers.attention import AttentionConfig, RoPEScaling
from retnet.model import Decoder

CASES = {
    "llama": llama(),
    "mistral": mistral(sliding_window=5),
    "mistral, short of its window": mistral(sliding_window=9),
    "mpt": mpt(),
}


def imported(folder, theirs) -> Decoder:
    theirs.save_pretrained(folder / "theirs")
    convert(folder / "theirs", folder / "ours")
    return load_checkpoint(folder / "ours")[0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("split", [7, 1])
def test_text_goes_on_here_and_there(tmp_path, name, split):
    theirs = CASES[name]
    model, kind = imported(tmp_path, theirs), theirs.config.model_type
    want = theirs(TOKENS).logits[:, split:]
    cache = DynamicCache(config=theirs.config)
    theirs(TOKENS[:, :split], past_key_values=cache)
    state = convert_state(cache, model.config, source=kind, position=cache.get_seq_length())
    assert state.position.tolist() == [split, split]
    got, _ = model(TOKENS[:, split:], state)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    for at in range(split, 12):  # token by token
        step, state = model(TOKENS[:, at : at + 1], state)
        torch.testing.assert_close(step[:, 0], want[:, at - split], rtol=1e-4, atol=1e-4)

    _, state = model(TOKENS[:, :split])
    pairs = convert_state(state, model.config, target=kind)
    layers: list[Any] = cache.layers
    for (k, v), layer in zip(pairs, layers, strict=True):
        torch.testing.assert_close(k, layer.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(v, layer.values, rtol=1e-4, atol=1e-4)
    if kind != "mistral":  # a window's cache also counts, and cannot be made of pairs alone
        there = theirs(TOKENS[:, split:], past_key_values=DynamicCache(pairs)).logits
        torch.testing.assert_close(there, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama_gqa", "llama_mha_tied", "mistral_window"])
def test_golden_caches_are_those_of_our_state(tmp_path, name):
    file = golden(name)
    kind = "mistral" if name.startswith("mistral") else "llama"
    said = {"model_type": "llama"} if kind == "llama" else {}
    convert(FOLDER / f"{name}.safetensors", tmp_path / "ours", answers=said)
    model, _ = load_checkpoint(tmp_path / "ours")
    _, state = model(file.tokens())
    pairs = convert_state(state, model.config, target=kind)
    for layer, (k, v) in enumerate(pairs):
        file.assert_agrees(k, f"cache{layer}_k")
        file.assert_agrees(v, f"cache{layer}_v")
    back = convert_state(pairs, model.config, source=kind, position=file.tokens().shape[1])
    token = torch.tensor([[1], [2]])
    torch.testing.assert_close(model(token, back)[0], model(token, state)[0], rtol=0, atol=0)


def test_order_of_rotating_pairs_is_theirs_in_the_cache():
    halves = ours(mixer=AttentionConfig(num_heads=2))
    between = ours(mixer=AttentionConfig(num_heads=2, pairs="interleaved"))
    _, state = between(TOKENS)
    pairs = convert_state(state, between.config, target="llama")
    assert not torch.equal(pairs[0][0], state.layers[0][0].k)
    back = convert_state(pairs, between.config, source="llama")
    assert torch.equal(back.layers[0][0].k, state.layers[0][0].k)
    _, state = halves(TOKENS)
    [(k, _)] = convert_state(state, halves.config, target="llama")
    assert torch.equal(k, state.layers[0][0].k)


def test_caches_that_do_not_fit_are_refused():
    model = ours(mixer=AttentionConfig(num_heads=2, window=4))
    config = model.config
    _, state = model(TOKENS)
    pairs = convert_state(state, config, target="mistral")
    with pytest.raises(ValueError, match="sliding window does not say how many tokens"):
        convert_state(pairs, config, source="mistral")
    with pytest.raises(ValueError, match="has 3 keys, and would have 2 after 2 tokens"):
        convert_state(pairs, config, source="mistral", position=2)
    with pytest.raises(ValueError, match="the state has 2 layers and the model 1"):
        convert_state(pairs * 2, config, source="mistral", position=12)
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[0, 9:] = False
    _, ragged = model(TOKENS, valid=valid)
    with pytest.raises(ValueError, match=r"rows have read \[9, 12\] tokens"):
        convert_state(ragged, config, target="mistral")
    dynamic = RoPEScaling(kind="dynamic", factor=2.0, original_len=8)
    grown = ours(mixer=AttentionConfig(num_heads=2, scaling=dynamic))
    with pytest.raises(ValueError, match="kept unrotated, or with sinks"):
        convert_state(grown(TOKENS)[1], grown.config, target="llama")
