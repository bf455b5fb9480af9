"""Adapters: they change their own base and no other, without the library that made them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import retnet
from model.small import close, config, decoder, tokens
from retnet.data import Tokenizer
from retnet.hub import load_checkpoint, save_checkpoint
from retnet.hub.adapter import (
    AdapterInfo,
    base_folder,
    fingerprint,
    read_info,
    relative_base,
    save_adapter,
)
from retnet.hub.lora import LoraInfo, peft_name
from retnet.model import Decoder
from retnet.model.initial_state import add_initial_state, initial_tensors

Q = "layers.1.branches.0.q_proj"
UP = "layers.0.branches.1.up_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    save_checkpoint(folder, decoder(config(vocab_size=257), torch.float32), Tokenizer.bytes())
    return folder


def info(base: Path, folder: Path, **changes: Any) -> AdapterInfo:
    model, _ = load_checkpoint(base)
    place = relative_base(base, folder)
    return replace(AdapterInfo(base=place, fingerprint=fingerprint(model)), **changes)


def states(base: Path) -> dict[str, torch.Tensor]:
    model = add_initial_state(load_checkpoint(base)[0])
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(S.shape, generator=generator)
        for name, S in initial_tensors(model).items()
    }


def lora_tensors() -> dict[str, torch.Tensor]:
    """Of rank 2, for a (16, 16) matrix and a (20, 16) one."""
    generator = torch.Generator().manual_seed(4)
    shapes = {f"{Q}.lora_A": (2, 16), f"{Q}.lora_B": (16, 2)}
    shapes |= {f"{UP}.lora_A": (2, 16), f"{UP}.lora_B": (20, 2)}
    return {
        f"{name}.default.weight": torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


@pytest.fixture
def state_adapter(base: Path) -> Path:
    folder = base.parent / "runs" / "state"
    save_adapter(folder, info(base, folder, step=12), states(base))
    return folder


@pytest.fixture
def lora_adapter(base: Path) -> Path:
    folder = base.parent / "runs" / "lora"
    lora = LoraInfo(rank=2, alpha=6, targets=("q_proj", "up_proj"), base=str(base))
    named = {peft_name(name): tensor for name, tensor in lora_tensors().items()}
    save_adapter(folder, info(base, folder, step=5, lora=lora), named)
    return folder


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(data | changes), encoding="utf-8")


def test_states_come_back_to_the_bit_and_change_the_model(base: Path, state_adapter: Path) -> None:
    model, _ = load_checkpoint(state_adapter)
    want = states(base)
    assert initial_tensors(model).keys() == want.keys()
    for name, S in initial_tensors(model).items():
        assert torch.equal(S, want[name])
    plain, text = load_checkpoint(base)[0], tokens(1, 5)
    assert not torch.allclose(model(text)[0], plain(text)[0])
    assert not model.training


def test_a_lora_is_added_to_the_weights(base: Path, lora_adapter: Path) -> None:
    model, _ = load_checkpoint(lora_adapter)
    plain, _ = load_checkpoint(base)
    learned, before = lora_tensors(), plain.state_dict()
    for name, weight in model.state_dict().items():
        layer = name.removesuffix(".weight")
        want = before[name]
        if layer in (Q, UP):
            a, b = (learned[f"{layer}.lora_{x}.default.weight"] for x in "AB")
            want = want + 3.0 * b @ a
        torch.testing.assert_close(weight, want, rtol=1e-6, atol=1e-6)
    assert model.config == plain.config


def test_a_merged_lora_has_the_logits_of_the_layers_side_by_side(
    base: Path, lora_adapter: Path
) -> None:
    """W x + scale B (A x), as PEFT computes it, in float64."""
    save_checkpoint(base, load_checkpoint(base, dtype=torch.float64)[0], Tokenizer.bytes())
    edit(lora_adapter / "tuning.json", base_fingerprint=fingerprint(load_checkpoint(base)[0]))
    merged, beside = load_checkpoint(lora_adapter)[0], load_checkpoint(base)[0]
    learned, text = lora_tensors(), tokens(2, 9)
    for layer in (Q, UP):
        a, b = (learned[f"{layer}.lora_{x}.default.weight"].double() for x in "AB")

        def add(_: object, x: Any, y: torch.Tensor, a: Any = a, b: Any = b) -> torch.Tensor:
            return y + 3.0 * (x[0] @ a.mT) @ b.mT

        beside.get_submodule(layer).register_forward_hook(add)
    close(merged(text)[0], beside(text)[0], 1e-12)


def test_a_rank_stabilized_lora_has_its_own_scale(base: Path, lora_adapter: Path) -> None:
    edit(lora_adapter / "adapter_config.json", use_rslora=True)
    model, plain = load_checkpoint(lora_adapter)[0], load_checkpoint(base)[0]
    a, b = (lora_tensors()[f"{Q}.lora_{x}.default.weight"] for x in "AB")
    got = model.state_dict()[f"{Q}.weight"] - plain.state_dict()[f"{Q}.weight"]
    torch.testing.assert_close(got, 6 / 2**0.5 * b @ a, rtol=1e-4, atol=1e-5)


def test_an_adapter_loads_alone_or_with_its_base_and_brings_the_tokenizer(
    base: Path, state_adapter: Path, lora_adapter: Path
) -> None:
    text = tokens(1, 7)
    for adapter in (state_adapter, lora_adapter):
        alone, tokenizer = retnet.load(adapter)
        both, _ = retnet.load(base, adapter=adapter)
        assert torch.equal(alone(text)[0], both(text)[0])
        assert tokenizer.vocab_size == 257


def test_folders_may_move_together(base: Path, state_adapter: Path) -> None:
    elsewhere = base.parent / "elsewhere"
    elsewhere.mkdir()
    shutil.move(base, elsewhere / "base")
    shutil.move(state_adapter.parent, elsewhere / "runs")
    retnet.load(elsewhere / "runs" / "state")


def test_a_missing_base_says_how_to_name_it(base: Path, state_adapter: Path) -> None:
    moved = base.rename(base.parent / "moved")
    message = r'is an adapter of "\.\./\.\./base", and .* does not exist; name the base: '
    with pytest.raises(ValueError, match=message):
        retnet.load(state_adapter)
    retnet.load(moved, adapter=state_adapter)


def test_another_base_is_refused(base: Path, state_adapter: Path, lora_adapter: Path) -> None:
    """One weight of the base differs by one bit."""
    model, tokenizer = retnet.load(base)
    with torch.no_grad():
        weight = model.lm_head.weight[0]
        weight[0] = weight[0].nextafter(torch.tensor(9.0))
    save_checkpoint(base, model, tokenizer)
    for adapter in (state_adapter, lora_adapter):
        with pytest.raises(ValueError, match=r"belongs to a model with fingerprint \w{8}, that of"):
            retnet.load(base, adapter=adapter)


def test_the_fingerprint_is_of_the_weights_however_they_are_stored(base: Path) -> None:
    model, _ = load_checkpoint(base)
    first = fingerprint(model)
    save_checkpoint(base.parent / "copy", model)
    assert fingerprint(load_checkpoint(base.parent / "copy")[0]) == first
    assert fingerprint(model.bfloat16()) != first
    tied = decoder(config(tie_embeddings=True), torch.float32)
    save_checkpoint(base.parent / "tied", tied)
    assert fingerprint(load_checkpoint(base.parent / "tied")[0]) == fingerprint(tied)


def test_the_adapter_is_merged_before_the_weights_are_rounded(
    lora_adapter: Path, state_adapter: Path
) -> None:
    model, _ = load_checkpoint(lora_adapter, dtype=torch.bfloat16)
    exact, _ = load_checkpoint(lora_adapter)
    assert torch.equal(
        model.state_dict()[f"{Q}.weight"], exact.state_dict()[f"{Q}.weight"].bfloat16()
    )
    model, _ = load_checkpoint(state_adapter, dtype=torch.bfloat16)
    assert torch.isfinite(model(tokens(1, 5))[0]).all()


def test_a_tuned_model_becomes_a_checkpoint_of_its_own(
    state_adapter: Path, lora_adapter: Path
) -> None:
    text = tokens(1, 7)
    for adapter in (state_adapter, lora_adapter):
        model, tokenizer = retnet.load(adapter)
        whole = adapter.parent / "whole"
        save_checkpoint(whole, model, tokenizer)
        again, _ = retnet.load(whole)
        assert torch.equal(again(text)[0], model(text)[0])


def test_files_are_small_and_say_what_they_are(state_adapter: Path, lora_adapter: Path) -> None:
    names = {path.name for path in state_adapter.iterdir()}
    assert names == {"tuning.json", "initial_state.safetensors"}
    floats = 2 * 4 * 4 * 6  # layers, heads, D_k, D_v
    assert (state_adapter / "initial_state.safetensors").stat().st_size < 4 * floats + 500
    assert json.loads((state_adapter / "tuning.json").read_text(encoding="utf-8")) == {
        "format": 1,
        "method": "state",
        "base": "../../base",
        "base_fingerprint": read_info(state_adapter).fingerprint,
        "step": 12,
    }
    names = {path.name for path in lora_adapter.iterdir()}
    assert names == {"tuning.json", "adapter_config.json", "adapter_model.safetensors"}
    keys = load_file(lora_adapter / "adapter_model.safetensors").keys()
    assert f"base_model.model.model.{Q}.lora_A.weight" in keys


def test_a_folder_of_peft_itself_is_read_too(
    base: Path, lora_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as PEFT's Trainer writes: no fingerprint, and a base seen from where it was started."""
    (lora_adapter / "tuning.json").unlink()
    edit(lora_adapter / "adapter_config.json", base_model_name_or_path="base")
    monkeypatch.chdir(base.parent)
    assert base_folder(lora_adapter) == Path("base")
    assert isinstance(retnet.load(lora_adapter)[0], Decoder)
    assert read_info(lora_adapter).fingerprint == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, r"has use_dora = True; without PEFT only plain LoRA can be read"),
        ({"bias": "all"}, r"has bias = 'all'; .* with bias = 'none'"),
        ({"modules_to_save": ["lm_head"]}, r"has modules_to_save = \['lm_head'\]"),
        ({"peft_type": "IA3"}, r"has peft_type = 'IA3'"),
        ({"r": 0}, r"has r = 0 and lora_alpha = 6; they must be numbers above 0"),
    ],
)
def test_a_lora_that_is_more_than_plain_is_refused(
    lora_adapter: Path, change: dict[str, Any], message: str
) -> None:
    edit(lora_adapter / "adapter_config.json", **change)
    with pytest.raises(ValueError, match=message):
        retnet.load(lora_adapter)


def test_tensors_of_another_model_are_refused(
    base: Path, lora_adapter: Path, state_adapter: Path
) -> None:
    (lora_adapter / "tuning.json").unlink()
    path = lora_adapter / "adapter_model.safetensors"
    good = load_file(path)
    for bad, message in (
        (dict(list(good.items())[1:]), r"unknown \['layers"),
        (good | {"base_model.model.model.x.lora_A.weight": torch.ones(2, 2)}, r"unknown \['x"),
        ({name: t[:, :-1].contiguous() for name, t in good.items()}, r"other shapes \['layers"),
    ):
        save_file(bad, path)
        with pytest.raises(ValueError, match=r"does not fit its base: missing .*" + message):
            retnet.load(base, adapter=lora_adapter)
    save_file({"other": torch.ones(1)}, state_adapter / "initial_state.safetensors")
    with pytest.raises(ValueError, match=r"does not fit its base: missing \['layers\.0"):
        retnet.load(state_adapter)


def test_what_is_broken_or_no_adapter_says_so(
    base: Path, state_adapter: Path, lora_adapter: Path
) -> None:
    with pytest.raises(ValueError, match=r"base holds no adapter; give a folder with tuning\.json"):
        retnet.load(base, adapter=base)
    with pytest.raises(ValueError, match=r"is an adapter itself; give its base"):
        retnet.load(state_adapter, adapter=lora_adapter)
    (lora_adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors does not exist"):
        retnet.load(lora_adapter)
    edit(state_adapter / "tuning.json", format=2)
    with pytest.raises(ValueError, match=r'has format 2 and method "state"; this version reads'):
        retnet.load(state_adapter)
    (state_adapter / "tuning.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tuning\.json must hold a JSON object"):
        retnet.load(state_adapter)
