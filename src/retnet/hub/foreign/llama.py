"""`LlamaForCausalLM` and `MistralForCausalLM` of transformers: the Transformer of today.

Source: transformers 5.23 (and 4.x, whose configs differ in how they name RoPE's frequencies).
"""

import re
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

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
from retnet.hub.foreign.rope import read_rope, rope_config
from retnet.hub.foreign.rules import SAME, Paired, Rule, one
from retnet.hub.foreign.tensors import Source
from retnet.mixers.attention import AttentionConfig
from retnet.mixers.channel import GLUConfig
from retnet.model import DecoderConfig, LayerConfig
from retnet.ops.gate import Activation
from retnet.ops.rope_scaling import scaled_frequencies
from retnet.ops.rotation import frequencies

EPS = Question("rms_norm_eps", float, "1e-5 (Llama 2, 3, Mistral) or 1e-6 (Llama 1)", least=0)
HEADS = Question("num_attention_heads", int, "hidden_size / 128", least=1)
ACTIVATIONS: dict[str, Activation] = {"silu": "swish", "gelu": "gelu", "relu": "relu"}
ACTIVATION = Question("hidden_act", str, "silu", choices=tuple(ACTIVATIONS))
MAX_LEN = Question("max_position_embeddings", int, "2048; no limit here", default=2048)
WINDOW = Question("sliding_window", int, "4096, or leave it out", default=None)

EMBEDDING, HEAD, LAYER = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0."
FREQUENCIES = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
TOLERANCE = 1e-2
"""Relative, of frequencies that a file holds: old files have them in bfloat16."""


def _recogniser(kind: str) -> Callable[[Source], str | None]:
    def recognise(source: Source) -> str | None:
        names = [LAYER + f"{name}_proj.weight" for name in ("self_attn.q", "mlp.gate")]
        if not all(name in source.entries for name in (EMBEDDING, *names)):
            return None
        said = source.config.get("model_type")
        if said is None:
            said = "mistral" if "sliding_window" in source.config else "llama"
        return f"transformers' {kind.capitalize()}" if said == kind else None

    return recognise


def _describer(kind: str) -> Callable[[Source, Answers], Translation]:
    usual = f"{kind} (Gemma and others have tensors of the same names)"
    model_type = Question("model_type", str, usual, choices=(kind,))

    def describe(source: Source, answers: Answers) -> Translation:
        if kind == "llama" or "model_type" in source.config:
            answers.read(model_type)
        said = answers.read(EPS, HEADS, ACTIVATION)
        inner, _ = matrix(source, LAYER + "mlp.gate_proj.weight")
        layers = num_layers(source.entries, "model.layers.")
        base, scaling = read_rope(source, answers)
        vocab_size, width = matrix(source, EMBEDDING)
        sizes_agree(
            answers,
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
        )
        num_heads = said["num_attention_heads"]
        q_rows, k_rows = (
            matrix(source, f"{LAYER}self_attn.{name}_proj.weight")[0] for name in "qk"
        )
        if q_rows % num_heads:
            raise ValueError(
                f"num_attention_heads ({num_heads}) must divide the {q_rows} rows of queries; "
                "correct it in the config, or with --set"
            )
        head_size = answers.take("head_dim", q_rows // num_heads)
        num_groups = answers.take("num_key_value_heads", k_rows // head_size)
        has_bias = LAYER + "self_attn.q_proj.bias" in source.entries
        attention = AttentionConfig(
            num_heads=num_heads,
            num_kv_heads=None if num_groups == num_heads else num_groups,
            head_size=None if q_rows == width else head_size,
            rope_base=base,
            pairs="half",
            scaling=scaling,
            bias=answers.take("attention_bias", has_bias) if kind == "llama" else has_bias,
            window=_window(source, answers) if kind == "mistral" else None,
        )
        mlp_bias = LAYER + "mlp.gate_proj.bias" in source.entries
        channel = GLUConfig(
            width=inner,
            activation=ACTIVATIONS[said["hidden_act"]],
            bias=answers.take("mlp_bias", mlp_bias) if kind == "llama" else mlp_bias,
        )
        config = DecoderConfig(
            d_model=width,
            layers=(LayerConfig(mixer=attention, channel=channel, repeat=layers),),
            vocab_size=vocab_size,
            norm_eps=said["rms_norm_eps"],
            tie_embeddings=is_tied(source, answers, "tie_word_embeddings", EMBEDDING, HEAD),
        )
        found = (*_rules(config), *ends(config, EMBEDDING, HEAD, HEAD in source.entries))
        return Translation(config, found, derived=_stored_frequencies(source, attention, head_size))

    return describe


def _expresser(kind: str) -> Callable[[DecoderConfig, Answers], Translation]:
    def express(config: DecoderConfig, answers: Answers) -> Translation:
        mixer, channel = uniform_branches(config, kind)
        refuse(
            kind,
            (not isinstance(mixer, AttentionConfig), "a mixer other than attention"),
            (not isinstance(channel, GLUConfig), "a channel mixer other than glu"),
        )
        _refuse_options(config, kind)
        head_size = mixer.head_size or config.d_model // mixer.num_heads
        max_len = answers.read(MAX_LEN)["max_position_embeddings"]
        described = {
            "model_type": kind,
            "architectures": [CLASSES[kind]],
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "intermediate_size": channel.width,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": mixer.num_heads,
            "num_key_value_heads": mixer.kv_heads,
            "head_dim": head_size,
            "hidden_act": {ours: theirs for theirs, ours in ACTIVATIONS.items()}[
                channel.activation
            ],
            "rms_norm_eps": config.norm_eps,
            "max_position_embeddings": max_len,
            "tie_word_embeddings": config.tie_embeddings,
            **rope_config(mixer.rope_base, mixer.scaling),
        }
        if kind == "llama":
            described |= {"attention_bias": mixer.bias, "mlp_bias": channel.bias}
        else:
            described["sliding_window"] = mixer.window
        found = (*_rules(config), *ends(config, EMBEDDING, HEAD, False))
        return Translation(config, found, described)

    return express


def _refuse_options(config: DecoderConfig, kind: str) -> None:
    mixer, channel = cast(tuple[AttentionConfig, GLUConfig], config.branches[0])
    scaled = mixer.scaling is not None and mixer.scaling.kind not in ("linear", "llama3", "yarn")
    llama = kind == "llama"
    can = AttentionConfig(
        num_heads=mixer.num_heads,
        num_kv_heads=mixer.num_kv_heads,
        head_size=mixer.head_size,
        rope_base=mixer.rope_base,
        scaling=None if scaled else mixer.scaling,
        bias=llama and mixer.bias,
        window=None if llama else mixer.window,
    )
    plain = GLUConfig(
        width=channel.width, activation=channel.activation, bias=llama and channel.bias
    )
    whole = DecoderConfig(
        d_model=config.d_model,
        layers=config.layers,
        vocab_size=config.vocab_size,
        norm_eps=config.norm_eps,
        tie_embeddings=config.tie_embeddings,
    )
    refuse(
        kind,
        *differences(mixer, can, "pairs", "random_positions"),
        *differences(channel, plain),
        *differences(config, whole, "norm_bias", "init", "dropout", "drop_path"),
    )


def _rules(config: DecoderConfig) -> tuple[Rule, ...]:
    found = [one("norm.weight", "model.norm.weight")]
    for index, (mixer, channel) in enumerate(config.branches):
        assert isinstance(mixer, AttentionConfig)
        assert isinstance(channel, GLUConfig)
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        found.append(one(f"{ours}.norms.0.weight", f"{theirs}.input_layernorm.weight"))
        found.append(one(f"{ours}.norms.1.weight", f"{theirs}.post_attention_layernorm.weight"))
        for name in "qkvo":
            change = SAME
            if name in "qk" and mixer.pairs != "half":
                heads = mixer.num_heads if name == "q" else mixer.kv_heads
                change = Paired(heads, mixer.pairs, "half")
            for part in ("weight", "bias")[: 1 + mixer.bias]:
                proj = f"{name}_proj.{part}"
                found.append(one(f"{ours}.branches.0.{proj}", f"{theirs}.self_attn.{proj}", change))
        for name in ("gate", "up", "down"):
            for part in ("weight", "bias")[: 1 + channel.bias]:
                proj = f"{name}_proj.{part}"
                found.append(one(f"{ours}.branches.1.{proj}", f"{theirs}.mlp.{proj}"))
    return tuple(found)


def _window(source: Source, answers: Answers) -> int | None:
    kinds = source.config.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "sliding_attention" for kind in kinds):
        raise ValueError(
            f"layer_types of {source.origin} ({kinds}) must all be "
            "sliding_attention: layers that differ cannot be converted"
        )
    if "sliding_window" not in source.config:
        return answers.read(WINDOW._replace(default=4096))["sliding_window"]  # Mistral's default
    return answers.read(WINDOW)["sliding_window"]


def _stored_frequencies(source: Source, mixer: AttentionConfig, width: int) -> dict[str, Tensor]:
    """Tables that old files hold, after a comparison with what they should be."""
    stored = {name: source.read(name) for name in source.entries if FREQUENCIES.fullmatch(name)}
    if mixer.scaling is None:
        want = frequencies("rope", width, mixer.rope_base)
    else:
        want = scaled_frequencies(mixer.scaling, width, mixer.rope_base)
    for name, table in stored.items():
        if table.shape != want.shape or not torch.allclose(table.double(), want, rtol=TOLERANCE):
            raise ValueError(
                f"{name} holds other frequencies than the config's rope_theta "
                f"({mixer.rope_base:g}) gives; correct the config, or --set rope_theta=..."
            )
    return stored


def _format(kind: str, title: str) -> Format:
    return Format(
        name=kind,
        title=title,
        recognise=_recogniser(kind),
        describe=_describer(kind),
        express=_expresser(kind),
        states=States(key_values.from_transformers, key_values.to_transformers),
    )


LLAMA = _format("llama", "transformers' Llama (grouped heads, biases, tied, scaled RoPE)")
MISTRAL = _format("mistral", "transformers' Mistral (sliding window)")
