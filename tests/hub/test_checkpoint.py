"""Checkpoint folders: what is saved comes back to the bit, and what is broken says so."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import retnet
from model.small import config, decoder, tokens
from retnet.data import Tokenizer
from retnet.hub import load_checkpoint, save_checkpoint, write_atomic
from retnet.mixers import MIXERS
from retnet.model import Decoder, preset, rival

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    "layer norm, embed norm": {"norm": "layer", "embed_norm": True},
    "deepnorm": {"residual": "deepnorm"},
}


def edit(path: Path, change: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(data)), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint with a tokenizer."""
    model = decoder(config(vocab_size=257), torch.float32)
    save_checkpoint(tmp_path / "good", model, Tokenizer.bytes())
    return tmp_path / "good"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_model_comes_back_to_the_bit(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = decoder(config(**VARIANTS[variant]), dtype)
    save_checkpoint(tmp_path, model)
    loaded, tokenizer = load_checkpoint(tmp_path)
    assert tokenizer is None
    assert loaded.config == model.config
    assert not loaded.training
    want = model.state_dict()
    assert loaded.state_dict().keys() == want.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, want[name]), name
    text = tokens(2, 9)
    assert torch.equal(loaded(text)[0], model(text)[0])


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_mixer_comes_back_to_the_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """What a cast of the model leaves precise is saved and read so, too."""
    config = rival(preset("small-1m", vocab_size=30), name)
    config = replace(config, layers=(replace(config.layers[0], repeat=1),))
    model = Decoder(config).to(dtype).eval()
    save_checkpoint(tmp_path, model)
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded.config == config
    want = model.state_dict()
    assert {key: x.dtype for key, x in loaded.state_dict().items()} == {
        key: x.dtype for key, x in want.items()
    }
    text = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(loaded(text)[0], model(text)[0])


def test_a_tied_head_is_saved_once_and_comes_back_tied(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, decoder(config(tie_embeddings=True)))
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    loaded(tokens(1, 3))[0].sum().backward()
    assert len(list(loaded.parameters())) == len({id(p) for p in loaded.parameters()})


def test_a_tied_file_that_holds_the_head_too_is_read(tmp_path: Path) -> None:
    """Other writers store a tied tensor twice."""
    model = decoder(config(tie_embeddings=True))
    save_checkpoint(tmp_path, model)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["embed_tokens.weight"].clone()}, path)
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_a_loaded_model_can_be_trained_and_cast(folder: Path) -> None:
    loaded, _ = load_checkpoint(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in loaded.parameters())
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    tied, _ = load_checkpoint(folder)
    assert {p.dtype for p in tied.parameters()} == {torch.float32}


def test_casting_keeps_a_tied_head_tied(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, decoder(config(tie_embeddings=True)))
    loaded, _ = load_checkpoint(tmp_path, dtype=torch.float32)
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    assert loaded.lm_head.weight.dtype == torch.float32


def test_the_tokenizer_comes_back(folder: Path) -> None:
    model, tokenizer = retnet.load(folder)
    assert isinstance(model, Decoder)
    text = "naïve 🙂 text"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == model.config.vocab_size == 257


def test_a_folder_without_tokenizer_is_refused_by_load_only(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, decoder())
    message = r"has no tokenizer\.json; copy the tokenizer there, or do without"
    with pytest.raises(ValueError, match=message):
        retnet.load(tmp_path)
    assert load_checkpoint(tmp_path)[1] is None


def test_a_tokenizer_with_ids_unknown_to_the_model_is_refused(folder: Path) -> None:
    Tokenizer.train_bpe(["some text of some words, some of them twice"] * 4, 280).save(folder)
    with pytest.raises(ValueError, match=r"tokenizer of 2\d\d ids, and its model reads 257; bring"):
        retnet.load(folder)


def test_files_are_in_hugging_face_layout(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert data["model_type"] == "retnet_decoder"
    assert data["architectures"] == ["RetNetDecoderForCausalLM"]
    assert data["dtype"] == "float32"
    assert data["bos_token_id"] == Tokenizer.bytes().bos_id
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    assert (folder / "model.safetensors").read_bytes()[8:].find(b'"format":"pt"') > 0


def test_a_text_ends_at_bos_or_at_the_tokenizers_eos(tmp_path: Path) -> None:
    words = Tokenizer.bytes()
    backend, model = words._backend, decoder(config(vocab_size=300), torch.float32)
    backend.add_special_tokens(["<|end|>"])
    ending = Tokenizer(backend, words.bos_token, {"eos_token": "<|end|>"})
    for tokenizer, eos in ((words, 256), (ending, [257, 256])):
        save_checkpoint(tmp_path, model, tokenizer)
        said = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
        pad = eos if isinstance(eos, int) else eos[0]
        assert said == {"bos_token_id": 256, "eos_token_id": eos, "pad_token_id": pad}
        assert retnet.load(tmp_path)[1].end_ids == tokenizer.end_ids


def test_saving_again_replaces_our_files_and_leaves_others(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    second = decoder(config(d_model=24, vocab_size=300), torch.float32)
    save_checkpoint(folder, second)
    assert load_checkpoint(folder)[0].config == second.config
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a" / "b", decoder())
    assert load_checkpoint(str(tmp_path / "a" / "b"))[0].config == config()


def test_every_preset_s_config_survives_the_folder(tmp_path: Path) -> None:
    described = replace(preset("paper-200m", vocab_size=5), d_model=16)
    layer = described.layers[0]
    described = replace(described, layers=(replace(layer, repeat=1),))
    save_checkpoint(tmp_path, Decoder(described))
    assert load_checkpoint(tmp_path)[0].config == described


def test_a_write_that_fails_leaves_the_last_good_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, lambda temporary: temporary.write_text("first", encoding="utf-8"))

    def fails(temporary: Path) -> None:
        temporary.write_text("half of the sec", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, fails)
    assert path.read_text(encoding="utf-8") == "first"
    write_atomic(path, lambda temporary: temporary.write_text("third", encoding="utf-8"))
    assert path.read_text(encoding="utf-8") == "third"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_save_leaves_a_checkpoint_that_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_checkpoint(folder)[0].state_dict()

    def fails(*_args: object, **_kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("retnet.hub.checkpoint.save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(folder, decoder(config(vocab_size=257), torch.float32, seed=5))
    for name, tensor in load_checkpoint(folder)[0].state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_truncated_weights_are_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    message = r"model\.safetensors is damaged .*restore it from a backup or train again"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_missing_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"does not exist; the checkpoint is incomplete"):
        load_checkpoint(folder)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}", encoding="utf-8")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(ValueError, match=r"has no config\.json; give a checkpoint folder"):
            load_checkpoint(path)


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe"], ids=repr)
def test_a_config_that_is_not_json_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON: .*restore it from"):
        load_checkpoint(folder)


@pytest.mark.parametrize("model_type", ["retnet", "llama", None])
def test_another_kind_of_model_is_refused(folder: Path, model_type: str | None) -> None:
    edit(folder / "config.json", lambda data: data | {"model_type": model_type})
    with pytest.raises(ValueError, match=r'model_type ".*"; it must be "retnet_decoder"'):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"model_type": "retnet_decoder"}'])
def test_a_config_of_another_shape_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json"):
        load_checkpoint(folder)


def test_a_config_with_an_unknown_key_names_the_nearest(folder: Path) -> None:
    edit(folder / "config.json", lambda data: data | {"decoder": data["decoder"] | {"nrm": "rms"}})
    with pytest.raises(ValueError, match=r"decoder\.nrm is not a known key; did you mean norm\?"):
        load_checkpoint(folder)


def test_weights_that_do_not_fit_the_config_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    good = load_file(path)
    cases = {
        r"missing \['norm\.weight'\]": {k: v for k, v in good.items() if k != "norm.weight"},
        r"unknown \['more\.weight'\]": good | {"more.weight": torch.zeros(2)},
        r"other shapes \['norm\.weight \(3,\) for \(16,\)'\]": good
        | {"norm.weight": torch.zeros(3)},
    }
    for message, tensors in cases.items():
        save_file(tensors, path)
        with pytest.raises(ValueError, match=message + r".*must come from the same save"):
            load_checkpoint(folder)


def test_a_pickle_under_the_weights_name_is_damaged_and_not_a_program(folder: Path) -> None:
    torch.save({"embed_tokens.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(folder)
