"""RetNets of other programs: to ours and back to the bit, and the function stays the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from golden_files import FOLDER, golden
from hub.foreign.shared import (
    answers_of,
    converted,
    golden_weights,
    same,
    save_weights,
    there_and_back,
)
from model.golden_mapping import FLA, SYNCDOTH, TORCHSCALE
from model.small import close, decoder, tokens
from retnet.hub import load_checkpoint, save_checkpoint
from retnet.hub.foreign import convert
from retnet.mixers.channel import FFNConfig, GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import Decoder, DecoderConfig, LayerConfig, preset

FORMAT: dict[str, str] = {
    **dict.fromkeys(TORCHSCALE, "torchscale"),
    **dict.fromkeys(SYNCDOTH, "syncdoth"),
}
FORMAT.update(dict.fromkeys(FLA, "fla"))
FOR_EXPORT: dict[str, dict[str, Any]] = {
    "fla_retnet_gqa": {"num_kv_heads": 2},
    "fla_retnet_mha": {"fuse_norm": False},
    "fla_retnet_nogate": {"fuse_norm": False},
}


@pytest.mark.parametrize("name", FORMAT)
def test_weights_come_back_to_the_bit(name: str, tmp_path: Path) -> None:
    if name == "fla_retnet_mha":  # this file stores its tied head twice, as theirs do not
        convert(FOLDER / f"{name}.safetensors", tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "back", to="fla", answers={"fuse_norm": "no"})
        want = golden_weights(name)
        del want["lm_head.weight"]
        same(load_file(tmp_path / "back" / "model.safetensors"), want)
    else:
        there_and_back(tmp_path, name, FORMAT[name], **FOR_EXPORT.get(name, {}))


@pytest.mark.parametrize("name", FORMAT)
def test_a_config_that_was_written_is_all_that_an_import_needs(name: str, tmp_path: Path) -> None:
    """What an export writes beside the weights answers every question, as the source did."""
    model = converted(tmp_path, name)
    said = FOR_EXPORT.get(name, {})
    convert(
        tmp_path / name,
        tmp_path / "back",
        to=FORMAT[name],
        answers={key: str(value) for key, value in said.items()},
    )
    config = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    # the only thing that no config of theirs has, because only one of their versions needs it
    answers = {"head_norm_eps": "1e-5"} if name == "torchscale_v1" else {}
    convert(tmp_path / "back", tmp_path / "again", answers=answers)
    again, _ = load_checkpoint(tmp_path / "again")
    assert again.config == model.config
    same(again.state_dict(), model.state_dict())
    for key, value in golden(name).config.items():
        if key not in ("recurrent_chunk_size", "torchscale_layout"):
            assert config.get(key) == value, key


def presets() -> dict[str, DecoderConfig]:
    """Configs that a format can express, small."""

    def small(name: str, layers: int = 2, heads: int = 2, **mixer: Any) -> DecoderConfig:
        config = preset(name, vocab_size=31)
        [layer] = config.layers
        assert isinstance(layer.mixer, RetentionConfig)
        widths = {"num_heads": heads, "value_width": 48 if "paper" in name else 36}
        channel = replace(layer.channel, width=20)  # type: ignore[type-var]
        layer = replace(
            layer, mixer=replace(layer.mixer, **(widths | mixer)), channel=channel, repeat=layers
        )
        return replace(config, d_model=24, layers=(layer,))

    return {
        "torchscale": small("torchscale-base"),
        "torchscale, of ours": small("small-1m"),
        "torchscale, one decay": small("torchscale-base", decay="constant:0.97"),
        "torchscale, post": replace(small("torchscale-base"), residual="post"),
        "torchscale, paper": small("paper-200m"),
        "syncdoth": small("torchscale-base", decay="linspace", heads=3),
        "syncdoth, halves": small("torchscale-base", pairs="half"),
        "fla": small("small-1m", decay="pow2", score_norm="none", head_norm_affine=True),
        "fla, interleaved": small(
            "small-1m", decay="pow2", score_norm="none", pairs="interleaved", gate=False
        ),
    }


@pytest.mark.parametrize("case", presets())
def test_our_models_are_the_same_function_there(case: str, tmp_path: Path) -> None:
    """Written in another's format and read back, with pairs of channels in its order."""
    config = presets()[case]
    to = case.partition(",")[0]
    if to == "fla":
        config = replace(config, embed_scale=False)
    model = decoder(config, torch.float64)
    save_checkpoint(tmp_path / "ours", model)
    convert(tmp_path / "ours", tmp_path / "theirs", to=to)
    answers = {"head_norm_eps": "1e-5"} if "paper" in case else {}
    convert(tmp_path / "theirs", tmp_path / "back", answers=answers)
    back, _ = load_checkpoint(tmp_path / "back")
    text = tokens(2, 9)
    with torch.no_grad():
        close(back(text)[0], model(text)[0])
    [layer] = back.config.layers
    assert isinstance(layer.mixer, RetentionConfig)
    assert layer.mixer.pairs == ("half" if to == "fla" else "interleaved")


CANNOT: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "angles": ("syncdoth", {"theta": "rope"}, {}, 'theta = "rope"'),
    "no angles": ("torchscale", {"theta": "none"}, {}, 'theta = "none"'),
    "no normaliser": ("torchscale", {"score_norm": "none"}, {}, 'score_norm = "none"'),
    "no gate": ("torchscale", {"gate": False}, {}, "without a gate"),
    "head norm": ("torchscale", {"head_norm": "layer"}, {}, 'head_norm = "layer"'),
    "affine": ("torchscale", {"head_norm_affine": True}, {}, "head norms with weights"),
    "keys": ("torchscale", {"key_width": 8}, {}, "keys of another width"),
    "state": ("torchscale", {"initial_state": True}, {}, "initial state"),
    "eps": ("torchscale", {"norm_eps": 1e-5}, {}, "several epsilons"),
    "bias": ("torchscale", {"bias": True, "head_norm": "layer"}, {}, "with bias = True"),
    "decay": ("syncdoth", {"theta": "linspace", "decay": "constant:0.9"}, {}, "constant:0.9"),
    "post": ("syncdoth", {"theta": "linspace"}, {"residual": "post"}, 'residual = "post"'),
    "norms": ("torchscale", {}, {"norm_weight": False}, "norms without weights"),
    "fla's decay": ("fla", {"decay": "linspace", "score_norm": "none"}, {}, "linspace"),
    "fla's normaliser": ("fla", {}, {}, 'score_norm = "scaled"'),
    "fla's embeddings": ("fla", {"score_norm": "none"}, {"embed_norm": True}, "embedding norm"),
    "fla's scale": ("fla", {"score_norm": "none"}, {"embed_scale": True}, "scaled embeddings"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_a_format_cannot_express_is_refused_by_name(case: str, tmp_path: Path) -> None:
    to, mixer, changes, message = CANNOT[case]
    base = preset("torchscale-base", vocab_size=31)
    [layer] = base.layers
    assert isinstance(layer.mixer, RetentionConfig)
    fields = {"num_heads": 2, "value_width": 24, "theta": "rope"} | mixer
    layer = replace(
        layer,
        mixer=replace(layer.mixer, **fields),
        channel=replace(layer.channel, width=20),  # type: ignore[type-var]
        repeat=2,
    )
    fields = {"d_model": 16, "layers": (layer,), "embed_scale": False} | changes
    save_checkpoint(tmp_path / "ours", Decoder(replace(base, **fields)))
    with pytest.raises(ValueError, match=f"{to} cannot express .*{message}"):
        convert(tmp_path / "ours", tmp_path / "theirs", to=to)
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    ("to", "channel", "message"),
    [
        ("torchscale", GLUConfig(width=8, bias=True), "a gated network with biases"),
        ("fla", GLUConfig(width=8, bias=True), "a gated network with biases"),
        ("fla", GLUConfig(width=8, activation="gelu"), 'activation = "gelu"'),
        ("syncdoth", GLUConfig(width=8, activation="sigmoid"), 'activation = "sigmoid"'),
        ("syncdoth", FFNConfig(width=8, bias=False), "a network without biases"),
        ("torchscale", FFNConfig(width=8), "channel mixer FFNConfig with bias = False"),
    ],
)
def test_channel_mixers_that_a_format_has_not_are_refused(
    to: str, channel: Any, message: str, tmp_path: Path
) -> None:
    mixer = RetentionConfig(num_heads=2, score_norm="none" if to == "fla" else "scaled")
    theta = "rope" if to == "fla" else "linspace"
    layer = LayerConfig(mixer=replace(mixer, theta=theta), channel=channel)
    save_checkpoint(
        tmp_path / "ours", Decoder(DecoderConfig(d_model=8, layers=(layer,), vocab_size=9))
    )
    with pytest.raises(ValueError, match=f"{to} cannot express .*{message}"):
        convert(tmp_path / "ours", tmp_path / "theirs", to=to)


def test_layers_that_differ_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "ours", decoder())
    with pytest.raises(ValueError, match="layers that differ from one another"):
        convert(tmp_path / "ours", tmp_path / "theirs", to="torchscale")


def test_old_files_of_fla_hold_gate_and_up_in_one(tmp_path: Path) -> None:
    """Before February 2025: (2F, D), the activated half first."""
    weights = golden_weights("fla_retnet_gqa")
    new = converted(tmp_path, "fla_retnet_gqa").state_dict()
    for layer in range(2):
        gate, up = (f"model.layers.{layer}.mlp.{x}_proj.weight" for x in ("gate", "up"))
        weights[gate] = torch.cat([weights[gate], weights.pop(up)])
    folder = tmp_path / "old"
    folder.mkdir()
    save_weights(folder / "model.safetensors", weights)
    config = golden("fla_retnet_gqa").config
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    report = convert(folder, tmp_path / "ours")
    assert report.version == "flash-linear-attention's RetNet, fused gate and up, grouped heads"
    same(load_checkpoint(tmp_path / "ours")[0].state_dict(), new)


def test_fla_heads_of_a_group_must_be_equal_to_share(tmp_path: Path) -> None:
    converted(tmp_path, "fla_retnet_nogate")
    with pytest.raises(ValueError, match=r"k_proj.weight: the heads of a group differ"):
        convert(
            tmp_path / "fla_retnet_nogate",
            tmp_path / "back",
            to="fla",
            answers={"num_kv_heads": "2"},
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fla_retnet_nogate"]


@pytest.mark.parametrize("name", ["torchscale_base", "syncdoth_glu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_decays_and_angles_are_read_off_tables_of_any_dtype(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    weights = {key: x.to(dtype) for key, x in golden_weights(name).items()}
    config = golden(name).config
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_weights(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    report = convert(folder, tmp_path / "ours", answers=answers_of(name, {}))
    [layer] = report.config.layers
    assert isinstance(layer.mixer, RetentionConfig)
    assert layer.mixer.decay == ("linspace" if name == "syncdoth_glu" else "pow2")
    assert layer.mixer.theta == "linspace"
    assert load_checkpoint(tmp_path / "ours")[0].lm_head.weight.dtype == dtype


def edited(folder: Path, change: dict[str, Tensor], config: dict[str, Any]) -> Path:
    """A torchscale folder with other tensors and options."""
    source = folder / "theirs"
    source.mkdir()
    save_weights(source / "model.safetensors", golden_weights("torchscale_base") | change)
    text = json.dumps(golden("torchscale_base").config | {"no_scale_embedding": True} | config)
    (source / "config.json").write_text(text, encoding="utf-8")
    return source


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"retnet_rel_pos.decay": torch.tensor([-0.1, -0.2, -0.4])}, {}, "decays of no known rule"),
        ({"retnet_rel_pos.angle": torch.ones(16)}, {}, "angles of no known rule"),
        ({}, {"decoder_retention_heads": 4}, r"heads is 4 in config.json, and 3 by retnet_rel_pos"),
        ({}, {"deepnorm": True}, "deepnorm is true and norms come before"),
        ({}, {"decoder_normalize_before": False}, "normalize_before is False in config.json"),
        ({}, {"activation_fn": "tanh"}, r"activation_fn \('tanh', config.json\) cannot be conv"),
        ({}, {"layernorm_eps": "tiny"}, "'tiny'. of config.json must be of type float"),
        ({}, {"share_decoder_input_output_embed": True}, "the file holds two that differ"),
        ({"layers.1.ffn.extra": torch.ones(1)}, {}, "1 tensors that its format does not know"),
        ({"layers.1.ffn.fc1.weight": torch.ones(3, 48)}, {}, r"gate_proj.weight is \(3, 48\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    change: dict[str, Tensor], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = edited(tmp_path, change, config)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    source = edited(tmp_path, {}, {})
    weights = load_file(source / "model.safetensors")
    del weights["layers.2.ffn.fc2.weight"], weights["layers.1.retention.q_proj.weight"]
    save_weights(source / "model.safetensors", weights)
    with pytest.raises(ValueError, match=r"2 tensors are missing: layers.1.retention.q_proj"):
        convert(source, tmp_path / "ours")


def test_without_tables_heads_and_decays_are_asked_for(tmp_path: Path) -> None:
    weights = golden_weights("torchscale_base")
    config = golden("torchscale_base").config
    del weights["retnet_rel_pos.angle"], weights["retnet_rel_pos.decay"]
    file = save_weights(tmp_path / "model.pt", weights)
    said = {"activation_fn": "swish", "layernorm_eps": "1e-6", "no_scale_embedding": "true"}
    with pytest.raises(ValueError, match="--set use_lm_decay="):
        convert(file, tmp_path / "ours", answers=said | {"decoder_retention_heads": "3"})
    said |= {"decoder_retention_heads": "3", "use_lm_decay": "false"}
    report = convert(file, tmp_path / "ours", answers=said)
    assert config["decoder_retention_heads"] == 3
    assert report.config == converted(tmp_path, "torchscale_base").config
