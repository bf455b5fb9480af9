"""RWKV-4 from and to the three programs that write it."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, RwkvConfig, RwkvForCausalLM

from golden_files import golden
from hub.foreign.shared import golden_weights, same, save_weights, there_and_back
from retnet.hub import load_checkpoint, save_checkpoint
from retnet.hub.foreign import convert
from retnet.hub.foreign.rwkv import LogOfDecay
from retnet.hub.foreign.rwkv_cpp_file import open_rwkv_cpp
from retnet.mixers.channel import GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.mixers.rwkv import RWKVConfig
from retnet.mixers.rwkv_channel import RWKVFFNConfig
from retnet.model import Decoder, DecoderConfig, LayerConfig

GOLDEN = golden("rwkv4")
KINDS = {torch.float32: 0, torch.float16: 1}


def in_transformers(state: dict[str, Tensor] | None = None) -> RwkvForCausalLM:
    """The model of the golden file as transformers has it, by the names of the golden README."""
    names = [name for name in RwkvConfig().to_dict() if name in GOLDEN.config]
    config = RwkvConfig(**{name: GOLDEN.config[name] for name in names})
    model = RwkvForCausalLM(config)
    renamed = {}
    for name, x in (state or golden_weights("rwkv4")).items():
        for old, new in (("emb.", "embeddings."), (".ln0.", ".pre_ln."), (".att.", ".attention."),
                         (".ffn.", ".feed_forward."), ("mix_k", "mix_key"), ("mix_v", "mix_value"),
                         ("mix_r", "mix_receptance")):  # fmt: skip
            name = name.replace(old, new)
        renamed[name if name == "head.weight" else f"rwkv.{name}"] = x
    model.load_state_dict(renamed)
    return model.eval()


def write_rwkv_cpp(
    path: Path, weights: dict[str, Tensor], dtype: torch.dtype, version: int
) -> Path:
    """As rwkv.cpp's own converter: matrices in `dtype`, all else float32."""
    V, D = weights["emb.weight"].shape
    layers = GOLDEN.config["n_layer"]
    data = struct.pack("<6i", 0x67676D66, version, V, D, layers, KINDS[dtype])
    for name, x in weights.items():
        x = x.float().squeeze()
        if "time_decay" in name:
            x = -torch.exp(x)
        x = x.to(dtype) if x.ndim > 1 else x
        key = name.encode()
        data += struct.pack("<3i", x.ndim, len(key), KINDS[x.dtype])
        data += struct.pack(f"<{x.ndim}i", *reversed(x.shape)) + key + x.numpy().tobytes()
    path.write_bytes(data)
    return path


def read_rwkv_cpp(path: Path) -> dict[str, Tensor]:
    opened = open_rwkv_cpp(path)
    return {name: opened.read(name) for name in opened.entries}


def official(folder: Path) -> Path:
    return save_weights(folder / "RWKV-4.pth", golden_weights("rwkv4"))


def deepspeed(folder: Path) -> Path:
    weights = golden_weights("rwkv4")
    named = {f"_forward_module.{name}": x for name, x in weights.items()}
    return save_weights(folder / "rwkv.pth", named)


def of_transformers(folder: Path) -> Path:
    in_transformers().save_pretrained(folder / "hf")
    return folder / "hf"


def of_rwkv_cpp(folder: Path) -> Path:
    return write_rwkv_cpp(folder / "rwkv.bin", golden_weights("rwkv4"), torch.float32, 101)


@pytest.mark.parametrize("make", [official, deepspeed, of_transformers, of_rwkv_cpp])
def test_logits_are_the_golden_ones_whoever_wrote_the_file(tmp_path, make):
    report = convert(make(tmp_path), tmp_path / "ours")
    assert report.version.startswith("RWKV-4")
    model, _ = load_checkpoint(tmp_path / "ours")
    # rwkv.cpp's files hold decays, rounded to float32, and not what decays are made of
    for dtype in (torch.float32, torch.float64)[: 1 if make is of_rwkv_cpp else 2]:
        logits, _ = model.to(dtype)(GOLDEN.tokens())
        for output in ("logits_pip", "logits_hf"):
            GOLDEN.assert_agrees(logits, output)


def test_official_file_comes_back_to_the_bit(tmp_path):
    there_and_back(tmp_path, "rwkv4", "rwkv4")


def test_folder_of_transformers_comes_back_to_the_bit(tmp_path):
    convert(of_transformers(tmp_path), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="rwkv-hf")
    file = "model.safetensors"
    same(load_file(tmp_path / "theirs" / file), load_file(tmp_path / "hf" / file))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    assert isinstance(model, RwkvForCausalLM)
    assert model.config.rescale_every == 0
    GOLDEN.assert_agrees(model.eval()(GOLDEN.tokens()).logits, "logits_hf")


def test_file_in_bfloat16_comes_back_to_the_bit_and_decays_stay_float32(tmp_path):
    half = {name: x.bfloat16() for name, x in golden_weights("rwkv4").items()}
    convert(save_weights(tmp_path / "world.pth", half), tmp_path / "ours")
    model, _ = load_checkpoint(tmp_path / "ours")
    dtypes = {name.rpartition(".")[2]: x.dtype for name, x in model.state_dict().items()}
    assert dtypes["time_decay"] == dtypes["time_first"] == torch.float32
    assert dtypes["mix_k"] == dtypes["weight"] == torch.bfloat16
    convert(tmp_path / "ours", tmp_path / "theirs", to="rwkv4", dtype=torch.bfloat16)
    same(torch.load(tmp_path / "theirs" / "model.pth", weights_only=True), half)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("version", [100, 101])
def test_file_of_rwkv_cpp_comes_back_to_the_bit(tmp_path, dtype, version):
    source = write_rwkv_cpp(tmp_path / "a.bin", golden_weights("rwkv4"), dtype, version)
    report = convert(source, tmp_path / "ours")
    assert f"version {version}, FP{16 if dtype == torch.float16 else 32}" in report.version
    convert(tmp_path / "ours", tmp_path / "theirs", to="rwkv-cpp")
    same(read_rwkv_cpp(tmp_path / "theirs" / "model.bin"), read_rwkv_cpp(source))
    header = (tmp_path / "theirs" / "model.bin").read_bytes()[:24]
    want = 0x67676D66, 101, 97, 40, 3, KINDS[dtype]
    assert struct.unpack("<6i", header) == want


def test_float16_for_rwkv_cpp_rounds_matrices_alone(tmp_path):
    weights = golden_weights("rwkv4")
    convert(official(tmp_path), tmp_path / "cpp", to="rwkv-cpp", dtype=torch.float16)
    want = write_rwkv_cpp(tmp_path / "want.bin", weights, torch.float16, 101)
    same(read_rwkv_cpp(tmp_path / "cpp" / "model.bin"), read_rwkv_cpp(want))


def test_bfloat16_for_rwkv_cpp_is_refused(tmp_path):
    half = {name: x.bfloat16() for name, x in golden_weights("rwkv4").items()}
    source = save_weights(tmp_path / "world.pth", half)
    with pytest.raises(
        ValueError, match=r"hold float32 or float16, .* are bfloat16; choose .*dtype"
    ):
        convert(source, tmp_path / "cpp", to="rwkv-cpp")
    assert not (tmp_path / "cpp").exists()


def test_decays_that_were_bfloat16_survive_rwkv_cpp_to_the_bit():
    """Most released files are; near 0 the file would otherwise not say which number it was."""
    change = LogOfDecay()
    d = torch.linspace(-9, 4, 4001).bfloat16().float()
    [stored] = change.to_theirs(d)
    [again] = change.to_ours(stored)
    assert torch.equal(again, d)
    d = torch.linspace(-9, 4, 4001)  # of any digits: theirs comes back, ours nearly
    [stored] = change.to_theirs(d)
    [again] = change.to_ours(stored)
    assert torch.equal(change.to_theirs(again)[0], stored)
    torch.testing.assert_close(again, d, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="decays must be below 0"):
        change.to_ours(-stored)


def damaged(data: bytes, change: str) -> bytes:
    numbers = np.frombuffer(data[:24], "<i4").copy()
    first = bytearray(data[24:36])
    if change == "version":
        numbers[1] = 99
    elif change == "quantised":
        numbers[5] = 7
    elif change == "one quantised":
        first[8:12] = struct.pack("<i", 9)
    elif change == "rank":
        first[:4] = struct.pack("<i", 7)
    elif change == "other width":
        numbers[3] = 41
    whole = numbers.tobytes() + bytes(first) + data[36:]
    if change == "twice":
        whole += whole[24:]
    return {"short": whole[:-3], "short header": whole[:30]}.get(change, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("version", r"version 99 of rwkv\.cpp's format; 100 and 101 are read"),
        (
            "quantised",
            r"numbers of type Q5_0; FP32 and FP16 are read: make the file from the \.pth",
        ),
        ("one quantised", r"blocks\.0\.att\.key\.weight has numbers of type Q8_0; FP32 and FP16"),
        ("rank", "is damaged at byte"),
        ("twice", r"it has blocks\.0\.att\.key\.weight twice"),
        ("short", r"ends within \w+"),
        ("short header", "ends within a header"),
        ("other width", r"header says vocabulary, width and layers are \(97, 41, 3\)"),
    ],
)
def test_file_of_rwkv_cpp_that_cannot_be_read_says_why(tmp_path, change, message):
    data = of_rwkv_cpp(tmp_path).read_bytes()
    bad = tmp_path / "bad.bin"
    bad.write_bytes(damaged(data, change))
    with pytest.raises(ValueError, match=message):
        convert(bad, tmp_path / "ours")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.0.att.ln_x.weight", r"RWKV-5, whose states are matrices; .* version 4 alone"),
        ("blocks.1.att.gate.weight", "RWKV-5"),
        ("blocks.0.att.time_maa_x", "RWKV-6"),
        ("blocks.0.att.k_k", "RWKV-7"),
        ("blocks.0.ffnPre.key.weight", "channel mixing in place of the first time mixing"),
        ("head_q.weight", r"copies tokens \(head_qk\)"),
        ("copy_mask", r"copies tokens \(head_qk\)"),
        ("pos_emb_x", "two-dimensional positions"),
        ("blocks.2.tiny_q.weight", r"small attention beside it \(tiny_att\)"),
        ("blocks.2.att.qq.weight", r"with attention \(qq, kk, vv\)"),
    ],
)
def test_other_versions_and_extras_are_refused_by_name(tmp_path, name, message):
    weights = {**golden_weights("rwkv4"), name: torch.zeros(3)}
    with pytest.raises(ValueError, match=rf"cannot be converted: it has .*{message}.*{name}"):
        convert(save_weights(tmp_path / "other.pth", weights), tmp_path / "ours")


def test_tokenizer_that_models_of_a_size_have_is_named_and_kept(tmp_path):
    weights = golden_weights("rwkv4")
    for V, name in ((50277, "20B_tokenizer.json"), (65536, "rwkv_vocab_v20230424.txt")):
        wide = {"emb.weight": torch.zeros(V, 40), "head.weight": torch.zeros(V, 40)}
        file = save_weights(tmp_path / f"{V}.pth", weights | wide)
        report = convert(file, tmp_path / f"{V}")
        assert f"none; models of this size have {name}" in report.tokenizer
    vocabulary = tmp_path / "world.txt"
    lines = [f"{byte + 1} {bytes([byte])!r} 1" for byte in range(256)]
    vocabulary.write_text("\n".join([*lines, "257 'the' 3"]))
    convert(file, tmp_path / "world", tokenizer=str(vocabulary))
    tokenizer = load_checkpoint(tmp_path / "world")[1]
    assert tokenizer is not None
    assert tokenizer.encode("the\n") == [257, 11]
    convert(tmp_path / "world", tmp_path / "hf", to="rwkv-hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["bos_token_id"] == config["eos_token_id"] == 0
    assert (tmp_path / "hf" / "tokenizer.json").exists()


def test_incomplete_file_is_refused(tmp_path):
    for missing in ("emb.weight", "blocks.1.ffn.value.weight", "ln_out.bias"):
        weights = golden_weights("rwkv4")
        del weights[missing]
        with pytest.raises(ValueError, match=rf"{missing}.* incomplete"):
            convert(save_weights(tmp_path / "part.pth", weights), tmp_path / "ours")


def model(**changes: Any) -> Decoder:
    layer = LayerConfig(
        mixer=changes.pop("mixer", RWKVConfig()),
        channel=changes.pop("channel", RWKVFFNConfig(width=16)),
        repeat=2,  # transformers cannot make one layer
    )
    plain: dict[str, Any] = {"norm": "layer", "norm_eps": 1e-5, "embed_norm": True}
    return Decoder(DecoderConfig(d_model=8, layers=(layer,), vocab_size=11, **(plain | changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": RetentionConfig(num_heads=2)}, "a mixer other than rwkv"),
        ({"channel": GLUConfig(width=8)}, "a channel mixer other than rwkv_ffn"),
        ({"mixer": RWKVConfig(token_shift=False)}, "token_shift = False"),
        ({"embed_norm": False, "norm": "rms"}, "norm = 'rms'; embed_norm = False"),
        ({"tie_embeddings": True}, "tie_embeddings = True"),
        ({"norm_eps": 1e-6}, "norm_eps = 1e-06"),
        ({"embed_scale": True, "residual": "post"}, "residual = 'post'; embed_scale = True"),
    ],
)
def test_what_a_file_of_rwkv_cannot_say_is_refused(tmp_path, changes, message):
    save_checkpoint(tmp_path / "ours", model(**changes))
    for to in ("rwkv4", "rwkv-cpp"):
        with pytest.raises(ValueError, match=rf"{to} cannot express {message}"):
            convert(tmp_path / "ours", tmp_path / "theirs", to=to)


def test_transformers_can_say_an_epsilon_and_a_tied_head(tmp_path):
    ours = model(tie_embeddings=True, norm_eps=1e-4).eval()
    save_checkpoint(tmp_path / "ours", ours)
    said = {"context_length": "64", "rescale_every": "6"}
    convert(tmp_path / "ours", tmp_path / "theirs", to="rwkv-hf", answers=said)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert (config["context_length"], config["rescale_every"]) == (64, 6)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    tokens = torch.arange(6)[None]
    torch.testing.assert_close(theirs(tokens).logits, ours(tokens)[0], rtol=1e-3, atol=1e-3)
    convert(tmp_path / "theirs", tmp_path / "again")
    assert load_checkpoint(tmp_path / "again")[0].config == ours.config
