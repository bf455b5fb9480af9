"""Folders that we write load with the Auto classes, and folders that these write load with us."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

import retnet
from hf.shared import WORDS, load, load_body, load_telling
from model.small import config, decoder, tokens
from retnet.data import Tokenizer
from retnet.hf import RetNetDecoderConfig, RetNetDecoderForCausalLM, RetNetDecoderModel
from retnet.hub import load_checkpoint, save_checkpoint
from retnet.model import Decoder, preset

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_embeddings": True, "embed_scale": True},
    "layer norm, embed norm": {"norm": "layer", "embed_norm": True},
    "deepnorm": {"residual": "deepnorm"},
}


def same_tensors(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_folder_of_ours_gives_our_logits(
    variant: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    own = decoder(config(**VARIANTS[variant]), dtype)
    save_checkpoint(tmp_path, own)
    model, told = load_telling(tmp_path)
    assert isinstance(model, RetNetDecoderForCausalLM)
    assert not any(told.values()), told
    assert model.dtype == dtype
    text = tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(model(text).logits, own(text)[0])
    base, told = load_telling(tmp_path, AutoModel)
    assert isinstance(base, RetNetDecoderModel)
    assert not any(told.values()), told
    with torch.no_grad():
        assert torch.equal(base(text).last_hidden_state, own.hidden(text)[0])


def test_a_dtype_of_choice_gives_the_logits_of_our_own_loader(folder: Path) -> None:
    own, _ = load_checkpoint(folder, dtype=torch.bfloat16)
    model = load(folder, dtype=torch.bfloat16)
    text = tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(model(text).logits, own(text)[0])


def test_the_config_reads_its_sizes_from_the_decoder(folder: Path, own: Decoder) -> None:
    found = AutoConfig.from_pretrained(folder)
    assert isinstance(found, RetNetDecoderConfig)
    assert found.decoder_config == own.config
    assert (found.vocab_size, found.hidden_size) == (own.config.vocab_size, own.config.d_model)
    assert found.num_hidden_layers == own.config.num_layers
    assert found.get_text_config(decoder=True) is found
    assert found.eos_token_id == found.pad_token_id == found.bos_token_id
    assert "vocab_size" not in found.to_dict()


def test_a_config_without_a_decoder_says_how_to_make_one() -> None:
    with pytest.raises(ValueError, match=r"no `decoder`; make one with RetNetDecoderConfig\.of"):
        RetNetDecoderForCausalLM(RetNetDecoderConfig())


def test_a_decoder_with_an_unknown_key_is_refused() -> None:
    broken = RetNetDecoderConfig(decoder={"d_modle": 3})
    with pytest.raises(ValueError, match=r"decoder\.d_modle is not a known key; did you mean"):
        RetNetDecoderForCausalLM(broken)


def test_the_tokenizer_gives_our_ids_behind_bos(folder: Path, tokenizer: Tokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in (WORDS[:40], "", "naïve \n\n日本 <|bos|>"):
        assert theirs(text)["input_ids"][0] == tokenizer.bos_id
        assert theirs(text, split_special_tokens=True)["input_ids"][1:] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.bos_id


@pytest.mark.parametrize("variant", ["plain", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_save_pretrained_writes_is_a_folder_of_ours(
    variant: str, dtype: torch.dtype, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    described = config(vocab_size=tokenizer.vocab_size, **VARIANTS[variant])
    own = decoder(described, dtype)
    save_checkpoint(tmp_path / "a", own, tokenizer)
    model = load(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    AutoTokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    files = [load_file(tmp_path / name / "model.safetensors") for name in "ab"]
    same_tensors(files[1], files[0])
    loaded, words = retnet.load(tmp_path / "b")
    assert loaded.config == own.config
    same_tensors(loaded.state_dict(), own.state_dict())
    assert words.fingerprint == tokenizer.fingerprint
    again = load(tmp_path / "b")
    same_tensors(again.state_dict(), model.state_dict())
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == (variant == "tied")


def test_a_new_model_saves_like_one_that_was_loaded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(RetNetDecoderConfig.of(config()))
    model.save_pretrained(tmp_path)
    own, _ = load_checkpoint(tmp_path)
    text = tokens(1, 5)
    with torch.no_grad():
        assert torch.equal(own(text)[0], model.eval()(text).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_a_new_model_has_the_decoders_weights(tied: bool) -> None:
    described = config(tie_embeddings=tied, init="subln", vocab_size=400)
    torch.manual_seed(1)
    body = RetNetDecoderForCausalLM(RetNetDecoderConfig.of(described)).model
    torch.manual_seed(1)
    own = Decoder(described).state_dict()
    same_tensors(body.state_dict(), {n: t for n, t in own.items() if n != "lm_head.weight"})


@pytest.mark.parametrize("tied", [False, True])
def test_a_new_head_is_as_large_as_the_decoders(tied: bool) -> None:
    described = config(tie_embeddings=tied, vocab_size=400)
    head = RetNetDecoderForCausalLM(RetNetDecoderConfig.of(described)).lm_head
    assert head.weight.std().item() == pytest.approx(16 ** (-1.0 if tied else -0.5), rel=0.05)


def test_shards_load_with_both(tmp_path: Path, own: Decoder) -> None:
    save_checkpoint(tmp_path / "a", own)
    load(tmp_path / "a").save_pretrained(tmp_path / "b", max_shard_size="4KB")
    assert not (tmp_path / "b" / "model.safetensors").exists()
    assert len(list((tmp_path / "b").glob("model-*.safetensors"))) > 2
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text("utf-8"))
    assert index["weight_map"].keys() == own.state_dict().keys()
    same_tensors(load(tmp_path / "b").state_dict(), load(tmp_path / "a").state_dict())
    same_tensors(load_checkpoint(tmp_path / "b")[0].state_dict(), own.state_dict())


def test_a_body_without_head_gets_a_new_head(tmp_path: Path, own: Decoder) -> None:
    save_checkpoint(tmp_path / "a", own)
    load_body(tmp_path / "a").save_pretrained(tmp_path / "b")
    model, told = load_telling(tmp_path / "b")
    assert told["missing_keys"] == {"lm_head.weight"}
    assert torch.equal(model.model.embed_tokens.weight, own.embed_tokens.weight)
    assert model.lm_head.weight.std().item() == pytest.approx(own.config.d_model**-0.5, rel=0.1)


def test_a_file_that_lacks_a_layers_tensor_is_refused(tmp_path: Path, own: Decoder) -> None:
    save_checkpoint(tmp_path / "a", own)
    model = load(tmp_path / "a")
    kept = {n: t for n, t in model.state_dict().items() if "layers.1.branches.0.q_proj" not in n}
    model.save_pretrained(tmp_path / "b", state_dict=kept)
    with pytest.raises(ValueError, match=r"lacks tensors of Linear.*; only the head may be"):
        load(tmp_path / "b")


def test_a_larger_vocabulary_is_saved_and_loads_with_us(tmp_path: Path) -> None:
    own = decoder(config(tie_embeddings=True), torch.float32)
    save_checkpoint(tmp_path / "a", own)
    model = load(tmp_path / "a")
    model.resize_token_embeddings(own.config.vocab_size + 3, mean_resizing=False)
    model.save_pretrained(tmp_path / "b")
    larger, _ = load_checkpoint(tmp_path / "b")
    assert larger.config.vocab_size == own.config.vocab_size + 3
    text = tokens(2, 7)
    with torch.no_grad():
        logits = larger(text)[0][..., : own.config.vocab_size]
        torch.testing.assert_close(logits, own(text)[0])


def test_weights_of_another_name_stay_where_the_hook_finds_them(folder: Path, own: Decoder) -> None:
    """The Trainer resumes through `load_state_dict`, whose names are those in memory."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict(tensors)
    name = "layers.0.branches.0.q_proj.weight"
    assert torch.equal(model.get_parameter(f"model.{name}"), own.get_parameter(name))
    wrapped = torch.nn.ModuleDict({"inner": model})
    wrapped.load_state_dict({f"inner.{name}": tensor for name, tensor in tensors.items()})
    model.load_state_dict(model.state_dict())


def test_a_preset_becomes_a_model() -> None:
    model = AutoModelForCausalLM.from_config(
        RetNetDecoderConfig.of(preset("small-1m", vocab_size=50), bos_token_id=3)
    )
    assert model.generation_config.eos_token_id == 3
    assert model.num_parameters() == Decoder(preset("small-1m", vocab_size=50)).num_parameters()
