"""`MptForCausalLM` of transformers: attention with ALiBi, LayerNorms without biases.

Source: transformers 5.23. Its positions are ALiBi's whatever the config says, and its inner layers
are four times as wide as the model; `expansion_ratio` is not read.
"""

from collections.abc import Mapping
from typing import Any

from retnet.hub.foreign import key_values
from retnet.hub.foreign.answers import Answers, Question
from retnet.hub.foreign.common import (
    differences,
    ends,
    is_tied,
    matrix,
    num_layers,
    refuse,
    sizes_agree,
    uniform_branches,
)
from retnet.hub.foreign.format import Format, States, Translation
from retnet.hub.foreign.rules import Rule, Stacked, one
from retnet.hub.foreign.tensors import Source
from retnet.mixers.attention import AttentionConfig
from retnet.mixers.channel import FFNConfig
from retnet.model import DecoderConfig, LayerConfig

EPS = Question("layer_norm_epsilon", float, "1e-5", default=1e-5, least=0)
HEADS = Question("n_heads", int, "d_model / 128", least=1)
MAX_LEN = Question("max_seq_len", int, "2048; no limit here", default=2048)

EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
BLOCK = "transformer.blocks.0."

PLAIN = {
    "attn_type": ("multihead_attention",),
    "alibi": (True,),
    "alibi_bias_max": (8,),
    "clip_qkv": (None, 0),
    "qk_ln": (False,),
    "prefix_lm": (False,),
    "softmax_scale": (None,),
}
"""Values of `attn_config` that can be converted; left out they mean these, too."""


def _recognise(source: Source) -> str | None:
    names = (EMBEDDING, BLOCK + "attn.Wqkv.weight", BLOCK + "ffn.up_proj.weight")
    return "transformers' MPT" if all(name in source.entries for name in names) else None


def _describe(source: Source, answers: Answers) -> Translation:
    _refuse_options(source.config.get("attn_config") or {}, source.origin)
    if source.config.get("logit_scale") is not None:
        raise ValueError(f"logit_scale of {source.origin}: scaled logits cannot be converted")
    said = answers.read(EPS, HEADS)
    vocab_size, d_model = matrix(source, EMBEDDING)
    width, _ = matrix(source, BLOCK + "ffn.up_proj.weight")
    layers = num_layers(source.entries, "transformer.blocks.")
    sizes_agree(answers, vocab_size=vocab_size, d_model=d_model, n_layers=layers)
    layer = LayerConfig(
        mixer=AttentionConfig(num_heads=said["n_heads"], position="alibi"),
        channel=FFNConfig(width=width, activation="gelu", bias=False),
        repeat=layers,
    )
    config = DecoderConfig(
        d_model=d_model,
        layers=(layer,),
        vocab_size=vocab_size,
        norm="layer",
        norm_bias=False,
        norm_eps=said["layer_norm_epsilon"],
        tie_embeddings=is_tied(source, answers, "tie_word_embeddings", EMBEDDING, HEAD),
    )
    stored = HEAD in source.entries
    return Translation(config, (*_rules(config), *ends(config, EMBEDDING, HEAD, stored)))


def _refuse_options(options: Mapping[str, Any] | Any, origin: str) -> None:
    if not isinstance(options, Mapping):
        raise ValueError(f"attn_config ({options!r}) of {origin} must be a table; correct it")
    for name, can in PLAIN.items():
        value = options.get(name, can[0])
        if value not in can:
            raise ValueError(
                f"attn_config.{name} ({value!r}) of {origin} cannot be converted; it must be "
                f"{can[0]!r}"
            )


def _express(config: DecoderConfig, answers: Answers) -> Translation:
    mixer, channel = uniform_branches(config, "mpt")
    refuse(
        "mpt",
        (not isinstance(mixer, AttentionConfig), "a mixer other than attention"),
        (not isinstance(channel, FFNConfig), "a channel mixer other than ffn"),
    )
    plain = DecoderConfig(
        d_model=config.d_model,
        layers=config.layers,
        vocab_size=config.vocab_size,
        norm="layer",
        norm_bias=False,
        norm_eps=config.norm_eps,
        tie_embeddings=config.tie_embeddings,
    )
    can = AttentionConfig(num_heads=mixer.num_heads, position="alibi")
    refuse(
        "mpt",
        *differences(mixer, can, "rope_base", "pairs", "random_positions"),
        *differences(channel, FFNConfig(width=4 * config.d_model, bias=False), "norm_eps"),
        *differences(config, plain, "init", "dropout", "drop_path"),
    )
    described = {
        "model_type": "mpt",
        "architectures": ["MptForCausalLM"],
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "n_heads": mixer.num_heads,
        "n_layers": config.num_layers,
        "expansion_ratio": 4,
        "layer_norm_epsilon": config.norm_eps,
        "no_bias": True,
        "attn_config": {name: can[0] for name, can in PLAIN.items()},
        "tie_word_embeddings": config.tie_embeddings,
        **answers.read(MAX_LEN),
    }
    return Translation(config, (*_rules(config), *ends(config, EMBEDDING, HEAD, False)), described)


def _rules(config: DecoderConfig) -> tuple[Rule, ...]:
    found = [one("norm.weight", "transformer.norm_f.weight")]
    for index in range(config.num_layers):
        ours, theirs = f"layers.{index}", f"transformer.blocks.{index}"
        qkv = tuple(f"{ours}.branches.0.{name}_proj.weight" for name in "qkv")
        found += [
            one(f"{ours}.norms.0.weight", f"{theirs}.norm_1.weight"),
            Rule(qkv, (f"{theirs}.attn.Wqkv.weight",), Stacked(*(config.d_model,) * 3)),
            one(f"{ours}.branches.0.o_proj.weight", f"{theirs}.attn.out_proj.weight"),
            one(f"{ours}.norms.1.weight", f"{theirs}.norm_2.weight"),
            one(f"{ours}.branches.1.up_proj.weight", f"{theirs}.ffn.up_proj.weight"),
            one(f"{ours}.branches.1.down_proj.weight", f"{theirs}.ffn.down_proj.weight"),
        ]
    return tuple(found)


MPT = Format(
    name="mpt",
    title="transformers' MPT (ALiBi)",
    recognise=_recognise,
    describe=_describe,
    express=_express,
    states=States(key_values.from_transformers, key_values.to_transformers),
)
