"""Files and folders of weights: every container gives the same tensors, and no file runs."""

import argparse
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from golden_files import golden
from hub.foreign.shared import converted, golden_weights, same, save_weights
from retnet.hub import load_checkpoint
from retnet.hub.foreign import convert, sources

NAME = "torchscale_options"  # its config says all there is to say


def config() -> dict[str, Any]:
    return dict(golden(NAME).config)


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")


def fairseq(weights: dict[str, Tensor]) -> dict[str, Any]:
    """What fairseq's trainer saves, with tensors of the decoder in a language model."""
    return {
        "model": {f"decoder.{name}": x for name, x in weights.items()},
        "extra_state": {"epoch": 3, "train_iterator": {"shuffle": True}},
        "optimizer_history": [{"num_updates": 7, "lr_scheduler_state": {"best": None}}],
        "last_optimizer_state": {"step": torch.ones(2)},
    }


def make_flat(folder: Path, weights: dict[str, Tensor]) -> Path:
    save_weights(folder / "model.pth", weights)
    write_json(folder / "config.json", config())
    return folder


def make_legacy(folder: Path, weights: dict[str, Tensor]) -> Path:
    torch.save(weights, folder / "old.pt", _use_new_zipfile_serialization=False)
    write_json(folder / "config.json", config())
    return folder


def make_args(folder: Path, weights: dict[str, Tensor]) -> Path:
    args = argparse.Namespace(arch="retnet_base", task="language_modeling", **config())
    torch.save(fairseq(weights) | {"args": args, "cfg": None}, folder / "checkpoint_best.pt")
    return folder / "checkpoint_best.pt"


def make_cfg(folder: Path, weights: dict[str, Tensor]) -> Path:
    cfg = {"_name": None, "model": config() | {"_name": "retnet"}, "common": {"seed": 1}}
    torch.save(fairseq(weights) | {"args": None, "cfg": cfg}, folder / "last.pt")
    return folder / "last.pt"


def make_cfg_namespace(folder: Path, weights: dict[str, Tensor]) -> Path:
    cfg = {"model": argparse.Namespace(_name="retnet_base", **config())}
    torch.save(fairseq(weights) | {"args": None, "cfg": cfg}, folder / "last.pt")
    return folder / "last.pt"


def halves(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    names = sorted(weights)
    cut = len(names) // 2
    return [{name: weights[name] for name in part} for part in (names[:cut], names[cut:])]


def make_bin_shards(folder: Path, weights: dict[str, Tensor]) -> Path:
    places = {}
    for number, part in enumerate(halves(weights), 1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        save_weights(folder / name, part)
        places |= dict.fromkeys(part, name)
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": places})
    write_json(folder / "config.json", config())
    return folder


def make_safetensors_shards(folder: Path, weights: dict[str, Tensor]) -> Path:
    places = {}
    for number, part in enumerate(halves(weights), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(part, folder / name)
        places |= dict.fromkeys(part, name)
    write_json(folder / "model.safetensors.index.json", {"weight_map": places})
    write_json(folder / "config.json", config())
    return folder


CONTAINERS = {
    "a flat .pth and a config": make_flat,
    "a file of old PyTorch": make_legacy,
    "fairseq with args": make_args,
    "fairseq with cfg": make_cfg,
    "fairseq with a namespace in cfg": make_cfg_namespace,
    "shards of .bin": make_bin_shards,
    "shards of safetensors": make_safetensors_shards,
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_gives_the_same_model(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    weights = {name: x.clone() for name, x in golden_weights(NAME).items()}
    source = CONTAINERS[kind](folder, weights)
    convert(source, tmp_path / "ours")
    want = converted(tmp_path, NAME)
    model, _ = load_checkpoint(tmp_path / "ours")
    assert model.config == want.config
    same(model.state_dict(), want.state_dict())


def test_a_file_is_opened_anew_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the pages of a mapped file do not pile up; here after almost every tensor."""
    monkeypatch.setattr(sources, "RENEW_BYTES", 5000)
    weights = {name: x.clone() for name, x in golden_weights(NAME).items()}
    for kind in ("fairseq with args", "shards of safetensors"):
        folder = tmp_path / kind.replace(" ", "_")
        folder.mkdir()
        convert(CONTAINERS[kind](folder, weights), tmp_path / f"{folder.name}_ours")
        same(
            load_checkpoint(tmp_path / f"{folder.name}_ours")[0].state_dict(),
            converted(folder, NAME).state_dict(),
        )


class Touch:
    """A pickle that makes a file when it is loaded in the ordinary way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def hostile_container(touch: Touch) -> dict[str, Any]:
    return {"model": {"decoder.x": torch.ones(1)}, "args": touch}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["in place of the tensors", "beside them"])
def test_a_hostile_pickle_does_not_run_and_the_error_says_why(
    zipped: bool, where: str, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    touch = Touch(made)
    data = touch if where == "in place of the tensors" else hostile_container(touch)
    file = tmp_path / "model.pt"
    torch.save(data, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"asks for \w+\.mkdir; only tensors.*nothing of it was run"
    ):
        convert(file, tmp_path / "ours")
    assert not made.exists()
    torch.load(file, weights_only=False)  # the file is what this test thinks it is
    assert made.is_dir()


def test_a_bare_hostile_pickle_does_not_run(tmp_path: Path) -> None:
    """Not one of torch.save, under a name that PyTorch uses."""
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(pickle.dumps(Touch(tmp_path / "made"), protocol=2))
    with pytest.raises(ValueError, match=r"cannot be read|asks for"):
        convert(file, tmp_path / "ours")
    assert not (tmp_path / "made").exists()


class Meter:
    """A class of somebody's training program."""


def test_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save(hostile_container(Meter()), file)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"asks for \S*Meter; only tensors"):
        convert(file, tmp_path / "ours")


def quantised(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "layers.0.retention.q_proj.weight"
    return weights | {name: weights[name].to(torch.int8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"flat_param_0": torch.ones(3)}, r"sharded by FSDP.*\(flat_param_0\)"),
        (
            lambda w: {f"_fsdp_wrapped_module.{name}": x for name, x in w.items()},
            "sharded by FSDP",
        ),
        (lambda w: w | {"layers.0.ffn.fc1.qweight": torch.ones(1)}, "GPTQ, AWQ or bitsandbytes"),
        (
            quantised,
            r"16, 32 or 64 bits with a point \(layers.0.retention.q_proj.weight, torch.int8",
        ),
        (lambda w: w | {"layers.1.moe_layer.gate.wg.weight": torch.ones(1)}, r"experts \(MoE\)"),
        (lambda w: w | {"layers.0.retention.q_proj.A.weight": torch.ones(1)}, "multiway"),
        (lambda _: {"base_model.x.lora_A.weight": torch.ones(1)}, "a LoRA adapter"),
        (lambda _: {"transformer.wte.weight": torch.ones(1)}, "no format that is known.*wte"),
    ],
)
def test_what_is_known_not_to_convert_is_refused_by_name(
    change: Any, message: str, tmp_path: Path
) -> None:
    file = save_weights(tmp_path / "model.safetensors", change(golden_weights(NAME)))
    with pytest.raises(ValueError, match=message):
        convert(file, tmp_path / "ours")


def test_another_model_of_flash_linear_attention_is_refused_by_name(tmp_path: Path) -> None:
    weights = golden_weights("fla_retnet_nogate")
    file = save_weights(tmp_path / "model.safetensors", weights)
    write_json(tmp_path / "config.json", golden("fla_retnet_nogate").config | {"model_type": "gla"})
    with pytest.raises(ValueError, match='model_type "gla" of no format that is known'):
        convert(tmp_path, tmp_path / "ours")
    # of a file alone nobody knows whose it is: many of their models have these tensors
    with pytest.raises(ValueError, match="--set model_type="):
        convert(file, tmp_path / "ours")


def test_syncdoth_of_before_september_2023_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", golden_weights("syncdoth_glu"))
    write_json(tmp_path / "config.json", {"qk_dim": 4, "v_dim": 8})
    with pytest.raises(ValueError, match=r"before September 2023 \(qk_dim, v_dim in config.json"):
        convert(tmp_path, tmp_path / "ours")


def test_shards_of_fairseq_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_last.pt"
    torch.save(fairseq(golden_weights(NAME)) | {"shard_metadata": [{"param_metadata": []}]}, file)
    with pytest.raises(ValueError, match=r"one rank.s shard.*consolidate_fsdp_shards"):
        convert(file, tmp_path / "ours")
    shard = file.rename(tmp_path / "checkpoint_last-shard0.pt")
    with pytest.raises(ValueError, match="one rank's part of a sharded checkpoint"):
        convert(shard, tmp_path / "ours")


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def test_damaged_files_are_told_from_others(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.pt"):
        file = save_weights(tmp_path / name, golden_weights(NAME))
        cut_short(file)
        with pytest.raises(ValueError, match=rf"{name} (is damaged|cannot be read).*fetch it"):
            convert(file, tmp_path / "ours")
    text = tmp_path / "model.bin"
    text.write_text("version https://git-lfs.github.com/spec/v1", encoding="utf-8")
    with pytest.raises(ValueError, match=r"is a pointer of Git LFS.*git lfs pull"):
        convert(text, tmp_path / "ours")
    text.write_text("<html>404</html>", encoding="utf-8")
    with pytest.raises(ValueError, match="is no file of weights that is known"):
        convert(text, tmp_path / "ours")
    old = tmp_path / "old.pt"  # as PyTorch wrote before 1.6
    torch.save(golden_weights(NAME), old, _use_new_zipfile_serialization=False)
    whole = old.read_bytes()
    for length in (2, 30, 100, 400, len(whole) - 9):
        old.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="it is damaged or no file of weights"):
            convert(old, tmp_path / "ours")
    with pytest.raises(ValueError, match="does not exist; give a checkpoint's"):
        convert(tmp_path / "nothing", tmp_path / "ours")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.ones(3), "holds a Tensor and no named tensors"),
        ({"state": {"x": 1}, "epoch": 3}, "holds state, epoch, and tensors by name are wanted"),
        ({}, "holds nothing"),
        ({"x": torch.ones(1).expand(10**9)}, "one number repeated"),
        ({"x": torch.ones(2, 2).to_sparse()}, "sparse"),
    ],
)
def test_a_pickle_without_plain_tensors_is_refused(data: Any, message: str, tmp_path: Path) -> None:
    torch.save(data, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "model.pt", tmp_path / "ours")


def test_a_folder_must_say_which_file_is_meant(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    with pytest.raises(ValueError, match="there is none; give the file itself"):
        convert(folder, tmp_path / "ours")
    for name in ("a.pt", "b.pt"):
        save_weights(folder / name, golden_weights(NAME))
    with pytest.raises(ValueError, match=r"there is a.pt, b.pt; give the file itself"):
        convert(folder, tmp_path / "ours")


def test_shards_that_are_missing_or_overlap_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    make_bin_shards(folder, golden_weights(NAME))
    second = folder / "pytorch_model-00002-of-00002.bin"
    whole = torch.load(second, weights_only=True)
    torch.save(whole | {"embed_tokens.weight": torch.ones(1)}, second)
    with pytest.raises(ValueError, match=r"embed_tokens.weight is in .*00001.* and in .*00002"):
        convert(folder, tmp_path / "ours")
    second.unlink()
    with pytest.raises(ValueError, match=r"00002.bin does not exist, and .*index.json names it"):
        convert(folder, tmp_path / "ours")
