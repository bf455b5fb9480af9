"""Llama, Mistral and MPT from and to transformers."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

from golden_files import FOLDER, golden
from hub.foreign.shared import golden_weights, same, save_weights
from retnet.data import Tokenizer
from retnet.hub import load_checkpoint, save_checkpoint
from retnet.hub.foreign import MissingAnswers, convert
from retnet.mixers.attention import AttentionConfig, RoPEScaling
from retnet.mixers.channel import FFNConfig, GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import Decoder, DecoderConfig, LayerConfig

GOLDENS = {"llama_gqa": "llama", "llama_mha_tied": "llama", "mistral_window": "mistral"}
GOLDENS |= {"mpt_alibi": "mpt"}
ANSWERS = {"llama": {"model_type": "llama"}, "mistral": {}, "mpt": {}}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4]])

K, EMBED = "model.layers.0.self_attn.k_proj.weight", "model.embed_tokens.weight"
TABLE = "model.layers.0.self_attn.rotary_emb.inv_freq"
FAR = "model.layers.300000000.self_attn.k_proj.weight"


@pytest.mark.parametrize("name", GOLDENS)
def test_logits_are_the_golden_ones(tmp_path, name):
    file, kind = golden(name), GOLDENS[name]
    convert(FOLDER / f"{name}.safetensors", tmp_path / "ours", answers=ANSWERS[kind])
    model, _ = load_checkpoint(tmp_path / "ours")
    for dtype in (torch.float32, torch.float64):
        logits, _ = model.to(dtype)(file.tokens())
        file.assert_agrees(logits, "logits")


@pytest.mark.parametrize("name", GOLDENS)
def test_weights_come_back_to_the_bit(tmp_path, name):
    kind = GOLDENS[name]
    convert(FOLDER / f"{name}.safetensors", tmp_path / "ours", answers=ANSWERS[kind])
    convert(tmp_path / "ours", tmp_path / "theirs", to=kind)
    want = golden_weights(name)
    if golden(name).config.get("tie_word_embeddings", kind == "mpt"):
        del want["lm_head.weight"]  # transformers does not save it a second time
    same(load_file(tmp_path / "theirs" / "model.safetensors"), want)


SMALL: dict[str, Any] = {
    "vocab_size": 13,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(**changes: Any) -> LlamaForCausalLM:
    plain: dict[str, Any] = SMALL | {"max_position_embeddings": 8}
    torch.manual_seed(1)
    return _lively(LlamaForCausalLM(LlamaConfig(**(plain | changes))))


def mistral(**changes: Any) -> MistralForCausalLM:
    plain: dict[str, Any] = SMALL | {"head_dim": 6}
    torch.manual_seed(1)
    return _lively(MistralForCausalLM(MistralConfig(**(plain | changes))))


def mpt(**changes: Any) -> MptForCausalLM:
    plain: dict[str, Any] = {
        "vocab_size": 13,
        "d_model": 24,
        "n_heads": 6,
        "n_layers": 2,
        "max_seq_len": 64,
    }
    torch.manual_seed(1)
    return _lively(MptForCausalLM(MptConfig(**(plain | changes))))


def _lively(model: Any) -> Any:
    """Weights large enough for positions to matter, biases other than zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **more}}


YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip
MODELS = {
    "llama": llama(),
    "heads of their own width, biases, gelu": llama(
        head_dim=6, attention_bias=True, mlp_bias=True, hidden_act="gelu"
    ),
    "tied": llama(tie_word_embeddings=True, rms_norm_eps=1e-3),
    "linear": llama(**rope("linear", factor=2.0)),
    "llama3": llama(**LLAMA3),
    "yarn": llama(**YARN),
    "yarn, spelt out": llama(
        **rope("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8.0,
               beta_slow=2.0, mscale=0.7, mscale_all_dim=0.5)
    ),
    "mistral": mistral(sliding_window=5),
    "mistral without a window": mistral(sliding_window=None),
    "mpt, heads no power of two": mpt(),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_compute_the_same_here_and_after_the_way_back(tmp_path, name):
    theirs = MODELS[name]
    theirs.save_pretrained(tmp_path / "theirs")
    report = convert(tmp_path / "theirs", tmp_path / "ours")
    ours, _ = load_checkpoint(tmp_path / "ours")
    want = theirs(TOKENS).logits
    torch.testing.assert_close(ours(TOKENS)[0], want, rtol=1e-4, atol=1e-4)
    kind = theirs.config.model_type
    convert(tmp_path / "ours", tmp_path / "again", to=kind)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert type(again) is type(theirs)
    torch.testing.assert_close(again(TOKENS).logits, want, rtol=1e-5, atol=1e-5)
    assert report.version == f"transformers' {kind.upper() if kind == 'mpt' else kind.title()}"
    files = [tmp_path / folder / "model.safetensors" for folder in ("again", "theirs")]
    same(*map(load_file, files))


def edited(folder: Path, model: PreTrainedModel, **changes: Any) -> Path:
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "left out"}))
    return folder


def test_configs_of_older_versions_are_read(tmp_path):
    """They have rope_theta and rope_scaling, or neither, and tables in the files."""
    model = llama(**LLAMA3)
    scaling: Any = model.config.rope_parameters
    old = {name: x for name, x in scaling.items() if name != "rope_theta"}
    folder = edited(tmp_path / "old", model, rope_parameters="left out", rope_theta=500.0,
                    rope_scaling={"type": old.pop("rope_type"), **old})  # fmt: skip
    convert(folder, tmp_path / "ours")
    want = model(TOKENS).logits
    got = load_checkpoint(tmp_path / "ours")[0](TOKENS)[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    oldest = edited(tmp_path / "oldest", llama(), rope_parameters="left out")
    file = oldest / "model.safetensors"
    table = 10000 ** -(torch.arange(0, 4, 2) / 4)
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    save_weights(file, load_file(file) | {name: table.bfloat16()})
    report = convert(oldest, tmp_path / "oldest ours")
    assert next(a for a in report.answers if a.name == "rope_theta").value == 10_000.0
    save_weights(file, load_file(file) | {name: table * 2})
    with pytest.raises(ValueError, match=rf"{re.escape(name)} holds other frequencies"):
        convert(oldest, tmp_path / "other")


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (llama(), rope("dynamic", factor=2.0), r'rope_type "dynamic" of config\.json cannot'),
        (llama(), rope("longrope"), r'rope_type "longrope"'),
        (llama(), rope("default", partial_rotary_factor=0.5), "of whole heads"),
        (llama(**YARN), rope("yarn", factor=4.0, truncate=False), "truncate of .* must be true"),
        (llama(), rope("linear"), "needs factor"),
        (llama(), rope("default", short_factor=[1.0]), "short_factor of .* is not understood"),
        (llama(), {"hidden_act": "gelu_new"}, "hidden_act .* must be one of 'silu', 'gelu'"),
        (llama(), {"model_type": "gemma"}, 'model_type "gemma" of no format that is known'),
        (llama(), {"num_attention_heads": 3}, r"\(3\) must divide the 16 rows"),
        (llama(), {"num_hidden_layers": 9}, "num_hidden_layers is 9 in config.json, and 2 by"),
        (llama(), {"vocab_size": 9}, "vocab_size is 9 in config.json"),
        (mpt(), {"n_layers": 9}, "n_layers is 9 in config.json"),
        (llama(), {"rms_norm_eps": -1.0}, r"rms_norm_eps \(-1\.0, config\.json\) must be at least"),
        (llama(), {"rms_norm_eps": math.nan}, r"rms_norm_eps \(nan\) of config\.json must be"),
        (llama(), {"num_attention_heads": 0}, "num_attention_heads .* must be at least 1"),
        (llama(), {"rope_scaling": "linear"}, "rope_scaling .'linear'. of config.json must be a"),
        (llama(), rope("llama3", factor=2.0), "'low_freq_factor' is missing or no number"),
        (llama(), {"rope_theta": 7.0}, r"rope_theta is 10000\.0 and 7\.0 in config\.json"),
        (mpt(), {"attn_config": "plain"}, "attn_config .'plain'. of config.json must be a table"),
        (mistral(), {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types of"),
        (mpt(), {"attn_config": {"alibi": False}}, r"attn_config\.alibi \(False\)"),
        (mpt(), {"attn_config": {"clip_qkv": 6.0}}, r"attn_config\.clip_qkv \(6\.0\)"),
        (mpt(), {"logit_scale": 0.5}, "scaled logits cannot be converted"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, model, changes, message):
    folder = edited(tmp_path / "theirs", model, **changes)
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "ours")


def test_what_the_user_says_wins_over_the_config(tmp_path):
    folder = edited(tmp_path / "theirs", llama())
    mixer: Any = convert(folder, tmp_path / "ours", answers={"rope_theta": "77"}).config.branches[
        0
    ][0]
    assert mixer.rope_base == 77.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(K), f"{K} is missing"),
        (lambda w: w.update({K: torch.ones(3)}), rf"{K} has the shape \(3,\), and a matrix is"),
        (lambda w: w.update({EMBED: torch.tensor(1.0)}), rf"{EMBED} has the shape \(\)"),
        (lambda w: w.update({TABLE: torch.ones(7)}), f"{TABLE} holds other frequencies"),
        (lambda w: w.update({FAR: torch.ones(1)}), "tensors of model.layers.2 are missing"),
        (lambda w: w.update({K: w[K].to(torch.float8_e4m3fn)}), "torch.float8_e4m3fn"),
    ],
)
def test_tensors_that_are_not_what_a_name_means_are_refused(tmp_path, change, message):
    folder = edited(tmp_path / "theirs", llama())
    weights = load_file(folder / "model.safetensors")
    change(weights)
    (folder / "model.safetensors").unlink()
    save_weights(folder / "pytorch_model.bin", weights)
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "ours")


def test_weights_without_a_config_are_asked_about(tmp_path):
    """Gemma has tensors of the same names, and computes something else."""
    file = save_weights(tmp_path / "a.safetensors", dict(llama().state_dict()))
    with pytest.raises(MissingAnswers, match="model_type") as raised:
        convert(file, tmp_path / "ours")
    said = {"model_type": "llama"}
    with pytest.raises(MissingAnswers) as raised:
        convert(file, tmp_path / "ours", answers=said)
    for name in ("rms_norm_eps", "num_attention_heads", "hidden_act"):
        assert name in str(raised.value)
    said |= {"rms_norm_eps": "1e-6", "num_attention_heads": "4", "hidden_act": "silu"}
    with pytest.raises(MissingAnswers, match=r"rope_theta=\.\.\.   10000 \(Llama 1 and 2\)"):
        convert(file, tmp_path / "ours", answers=said)
    convert(file, tmp_path / "ours", answers=said | {"rope_theta": "10000"})
    ours, _ = load_checkpoint(tmp_path / "ours")
    torch.testing.assert_close(ours(TOKENS)[0], llama()(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_mistral_without_the_key_has_the_window_that_the_program_takes(tmp_path):
    folder = edited(tmp_path / "theirs", mistral(), sliding_window="left out")
    mixer: Any = convert(folder, tmp_path / "ours").config.branches[0][0]
    assert mixer.window == 4096


def test_files_by_llamas_own_names_are_sent_to_transformers(tmp_path):
    weights = {"layers.0.attention.wq.weight": torch.zeros(4, 4)}
    with pytest.raises(ValueError, match="convert_llama_weights_to_hf"):
        convert(save_weights(tmp_path / "consolidated.00.pth", weights), tmp_path / "ours")


def ours(mixer: Any = None, channel: Any = None, **changes: Any) -> Decoder:
    layer = LayerConfig(
        mixer=mixer or AttentionConfig(num_heads=2), channel=channel or GLUConfig(width=8)
    )
    changes = {"vocab_size": 13} | changes
    return Decoder(DecoderConfig(d_model=8, layers=(layer,), **changes)).eval()


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_our_order_of_rotating_pairs_is_turned_into_theirs(tmp_path, kind):
    mixer = AttentionConfig(num_heads=4, num_kv_heads=2, pairs="interleaved", bias=kind == "llama")
    model = _lively(ours(mixer=mixer))
    save_checkpoint(tmp_path / "ours", model)
    convert(tmp_path / "ours", tmp_path / "theirs", to=kind)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    torch.testing.assert_close(theirs(TOKENS).logits, model(TOKENS)[0], rtol=1e-4, atol=1e-4)


def test_texts_end_in_transformers_where_ours_do(tmp_path):
    """Its classes would take token 2 for the end, whatever the tokenizer is."""
    model = ours(vocab_size=257)
    for tokenizer, ids in ((None, None), (Tokenizer.bytes(), 256)):
        save_checkpoint(tmp_path / "ours", model, tokenizer)
        convert(tmp_path / "ours", tmp_path / "theirs", to="llama", force=True)
        config = LlamaConfig.from_pretrained(tmp_path / "theirs")
        assert config.bos_token_id == config.eos_token_id == ids


NTK = RoPEScaling(kind="ntk", factor=2.0, original_len=8)
ALIBI = AttentionConfig(num_heads=2, position="alibi")
MPT_FFN = FFNConfig(width=32, bias=False)


@pytest.mark.parametrize(
    ("to", "model", "message"),
    [
        ("llama", ours(mixer=RetentionConfig(num_heads=2)), "a mixer other than attention"),
        ("llama", ours(channel=FFNConfig(width=8)), "a channel mixer other than glu"),
        ("llama", ours(mixer=AttentionConfig(num_heads=2, window=4)), "window = 4"),
        ("llama", ours(mixer=AttentionConfig(num_heads=2, scaling=NTK)), "scaling = RoPEScaling"),
        ("llama", ours(mixer=ALIBI), "position = 'alibi'"),
        ("llama", ours(norm="layer", embed_norm=True), "norm = 'layer'; embed_norm = True"),
        ("mistral", ours(mixer=AttentionConfig(num_heads=2, bias=True)), "bias = True"),
        ("mistral", ours(channel=GLUConfig(width=8, bias=True)), "bias = True"),
        ("mpt", ours(), "a channel mixer other than ffn"),
        ("mpt", ours(channel=MPT_FFN), "position = 'rope'"),
        ("mpt", ours(mixer=ALIBI, channel=FFNConfig(width=8, bias=False)), "width = 8"),
        ("mpt", ours(mixer=ALIBI, channel=FFNConfig(width=32)), "bias = True"),
        ("mpt", ours(mixer=ALIBI, channel=MPT_FFN), "norm = 'rms'; norm_bias = True"),
    ],
)
def test_what_a_format_cannot_say_is_refused(tmp_path, to, model, message):
    save_checkpoint(tmp_path / "ours", model)
    with pytest.raises(ValueError, match=rf"{to} cannot express {message}"):
        convert(tmp_path / "ours", tmp_path / "theirs", to=to)
