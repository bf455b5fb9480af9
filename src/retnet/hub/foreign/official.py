"""What torchscale and syncdoth's RetNet share: options, names of tensors, tables.

Sources: microsoft/torchscale 4d1e0e8 (and d1fefe9, its first layout), syncdoth/RetNet 2634bbf.
"""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from retnet.hub.foreign.answers import Answers, Question
from retnet.hub.foreign.common import (
    is_tied,
    matrix,
    num_layers,
    refuse,
    sizes_agree,
    uniform_branches,
)
from retnet.hub.foreign.rules import SAME, Change, Paired, Rule, one
from retnet.hub.foreign.tensors import Source
from retnet.mixers.channel import FFNConfig, GLUConfig
from retnet.mixers.retention import RetentionConfig, log_decays
from retnet.model import DecoderConfig, LayerConfig
from retnet.ops.gate import Activation
from retnet.ops.rotation import Theta, frequencies

EPS = Question(
    "layernorm_eps",
    float,
    "1e-6 (torchscale since September 2023, syncdoth) or 1e-5 (before)",
    least=0,
)
HEAD_EPS = Question(
    "head_norm_eps", float, "that of layernorm_eps, or 1e-6 (torchscale of August 2023)", least=0
)
ACTIVATION = Question(
    "activation_fn",
    str,
    "gelu (RetNetConfig's default) or swish (fairseq's presets, syncdoth)",
    choices=("swish", "gelu", "relu"),
)
UNSCALED = Question(
    "no_scale_embedding", bool, "true (RetNetConfig's default) or false (fairseq's presets)"
)
DEEPNORM = Question("deepnorm", bool, "false, or true for DeepNorm residuals", default=False)
DROPOUT = Question("dropout", float, "0.0", default=0.0)
DROP_PATH = Question("drop_path_rate", float, "0.0", default=0.0)
SCORE_NORM = Question(
    "score_norm",
    str,
    "scaled (their token-by-token form) or torchscale (their parallel form)",
    default="scaled",
    choices=("scaled", "torchscale"),
)
HEADS = Question("decoder_retention_heads", int, "decoder_embed_dim / 256", least=1)
LM_DECAY = Question("use_lm_decay", bool, "false (torchscale) or true (an option of syncdoth)")
ANGLE, DECAY = "retnet_rel_pos.angle", "retnet_rel_pos.decay"


class Names(NamedTuple):
    """How a program names its tensors.

    Attributes:
        prefix: before the names of all but the head.
        head: name of the head's weight.
        tied: name of the option that makes embedding and head one.
    """

    prefix: str
    head: str
    tied: str


def describe(source: Source, answers: Answers, names: Names, first: bool) -> DecoderConfig:
    """Our config of their model.

    Args:
        source: the checkpoint.
        answers: to what the weights do not say.
        names: what tensors are called.
        first: whether it is torchscale's first layout, with biases and LayerNorm.
    """

    def has(name: str) -> bool:
        return names.prefix + name in source.entries

    embedding = names.prefix + "embed_tokens.weight"
    vocab_size, d_model = matrix(source, embedding)
    value_width, _ = matrix(source, names.prefix + "layers.0.retention.v_proj.weight")
    width, _ = matrix(source, names.prefix + "layers.0.ffn.fc1.weight")
    layers = num_layers(source.entries, names.prefix + "layers.")
    sizes_agree(
        answers, decoder_embed_dim=d_model, decoder_ffn_embed_dim=width, decoder_layers=layers
    )
    num_heads, decay = _heads_and_decay(source, answers, names)
    questions = (EPS, ACTIVATION, UNSCALED, DEEPNORM, SCORE_NORM, DROPOUT, DROP_PATH)
    said = answers.read(*questions, *(HEAD_EPS,) * first)
    eps, activation = said["layernorm_eps"], cast(Activation, said["activation_fn"])
    pre = answers.take("decoder_normalize_before", has("layer_norm.weight"))
    if pre and said["deepnorm"]:
        raise ValueError(
            "deepnorm is true and norms come before branches (there is a layer_norm.weight): "
            "residuals that are scaled so cannot be converted; if the flag is wrong, give "
            "--set deepnorm=false"
        )
    retention = RetentionConfig(
        num_heads=num_heads,
        value_width=answers.take("decoder_value_embed_dim", value_width),
        decay=decay,
        theta=_theta(source, names, d_model // num_heads),
        pairs="interleaved",
        score_norm="torchscale_v1"
        if first and said["score_norm"] == "torchscale"
        else said["score_norm"],
        head_norm="layer" if first else "rms",
        norm_eps=said["head_norm_eps"] if first else eps,
        bias=first,
    )
    if has("layers.0.ffn.gate.weight"):
        channel = GLUConfig(width=width, activation=activation)
    else:
        inner = has("layers.0.ffn.ffn_layernorm.weight")
        channel = FFNConfig(width=width, activation=activation, inner_norm=inner, norm_eps=eps)
    return DecoderConfig(
        d_model=d_model,
        layers=(LayerConfig(mixer=retention, channel=channel, repeat=layers),),
        vocab_size=vocab_size,
        norm="layer" if first else "rms",
        norm_eps=eps,
        residual="pre" if pre else "deepnorm" if said["deepnorm"] else "post",
        tie_embeddings=is_tied(source, answers, names.tied, embedding, names.head),
        embed_scale=not said["no_scale_embedding"],
        embed_norm=answers.take("layernorm_embedding", has("layernorm_embedding.weight")),
        dropout=said["dropout"],
        drop_path=said["drop_path_rate"],
    )


def express(config: DecoderConfig, name: str) -> dict[str, Any]:
    """The options that describe a decoder of ours in both programs.

    Raises:
        ValueError: they cannot; the message says why.
    """
    mixer, channel = uniform_branches(config, name)
    refuse(
        name,
        (not isinstance(mixer, RetentionConfig), "a mixer other than retention"),
        (not isinstance(channel, GLUConfig | FFNConfig), "a channel mixer other than glu and ffn"),
    )
    head_norm = "layer" if mixer.bias else "rms"
    epsilons = {config.norm_eps, mixer.norm_eps}
    if isinstance(channel, FFNConfig) and channel.inner_norm:
        epsilons.add(channel.norm_eps)
    refuse(
        name,
        (mixer.key_width not in (None, config.d_model), "keys of another width than d_model"),
        (mixer.theta == "none", 'theta = "none"'),
        (mixer.score_norm == "none", 'score_norm = "none"'),
        (not mixer.gate, "retention without a gate"),
        (mixer.head_norm != head_norm, f'head_norm = "{mixer.head_norm}" with bias = {mixer.bias}'),
        (mixer.head_norm_affine, "head norms with weights"),
        (mixer.initial_state, "a learned initial state"),
        (not config.norm_weight, "norms without weights"),
        (config.norm == "layer" and not config.norm_bias, "LayerNorms without biases"),
        (isinstance(channel, GLUConfig) and channel.bias, "a gated network with biases"),
        (isinstance(channel, FFNConfig) and not channel.bias, "a network without biases"),
        (channel.activation not in ACTIVATION.choices, f'activation = "{channel.activation}"'),
        (len(epsilons) > 1, f"norms of several epsilons ({sorted(epsilons)})"),
    )
    return {
        "vocab_size": config.vocab_size,
        "decoder_embed_dim": config.d_model,
        "decoder_value_embed_dim": mixer.value_width or 2 * config.d_model,
        "decoder_retention_heads": mixer.num_heads,
        "decoder_ffn_embed_dim": channel.width,
        "decoder_layers": config.num_layers,
        "decoder_normalize_before": config.residual == "pre",
        "activation_fn": channel.activation,
        "no_scale_embedding": not config.embed_scale,
        "layernorm_embedding": config.embed_norm,
        "deepnorm": config.residual == "deepnorm",
        "subln": isinstance(channel, FFNConfig) and channel.inner_norm,
        "layernorm_eps": config.norm_eps,
        "dropout": config.dropout,
        "drop_path_rate": config.drop_path,
    }


def rules(config: DecoderConfig, prefix: str) -> tuple[Rule, ...]:
    """Which tensor is which, but for the embedding and the head."""
    found = []

    def linear(ours: str, theirs: str, bias: bool, change: Change = SAME) -> None:
        for kind in ("weight", "bias")[: 1 + bias]:
            found.append(one(f"{ours}.{kind}", f"{prefix}{theirs}.{kind}", change))

    def norm(ours: str, theirs: str, bias: bool = config.norm == "layer") -> None:
        linear(ours, theirs, bias)

    if config.embed_norm:
        norm("embed_norm", "layernorm_embedding")
    for index, (mixer, channel) in enumerate(config.branches):
        assert isinstance(mixer, RetentionConfig)
        layer, retention, ffn = (f"layers.{index}" + x for x in ("", ".branches.0", ".branches.1"))
        norm(f"{layer}.norms.0", f"{layer}.retention_layer_norm")
        paired = Paired(mixer.num_heads, mixer.pairs, "interleaved")
        for name in "qkvg":
            theirs = f"{layer}.retention.{name}_proj"
            change = paired if name in "qk" else SAME
            linear(f"{retention}.{name}_proj", theirs, mixer.bias, change)
        linear(f"{retention}.o_proj", f"{layer}.retention.out_proj", mixer.bias)
        norm(f"{layer}.norms.1", f"{layer}.final_layer_norm")
        if isinstance(channel, GLUConfig):
            linear(f"{ffn}.gate_proj", f"{layer}.ffn.fc1", False)
            linear(f"{ffn}.up_proj", f"{layer}.ffn.gate", False)
            linear(f"{ffn}.down_proj", f"{layer}.ffn.fc2", False)
        else:
            assert isinstance(channel, FFNConfig)
            linear(f"{ffn}.up_proj", f"{layer}.ffn.fc1", True)
            linear(f"{ffn}.down_proj", f"{layer}.ffn.fc2", True)
            if channel.inner_norm:
                norm(f"{ffn}.inner_norm", f"{layer}.ffn.ffn_layernorm", bias=True)
    if config.residual == "pre":
        norm("norm", "layer_norm")
    return tuple(found)


def tables(config: DecoderConfig, prefix: str) -> dict[str, Tensor]:
    """Their buffers of angles and decays: to the bit where they have the rule, else ours."""
    mixer = config.branches[0][0]
    assert isinstance(mixer, RetentionConfig)
    pairs = (mixer.key_width or config.d_model) // mixer.num_heads // 2
    if mixer.theta == "linspace":
        angle = 1.0 / (10000 ** torch.linspace(0, 1, pairs))
    else:
        angle = frequencies(mixer.theta, 2 * pairs).float()
    if mixer.decay == "pow2":
        decay = torch.log(1 - 2 ** (-5 - torch.arange(mixer.num_heads, dtype=torch.float)))
    elif mixer.decay == "linspace":
        ends = math.log(1 / 32), math.log(1 / 512)
        decay = torch.log(1 - torch.exp(torch.linspace(*ends, mixer.num_heads)))
    else:
        decay = log_decays(mixer.decay, mixer.num_heads).float()
    return {prefix + ANGLE: angle.repeat_interleave(2), prefix + DECAY: decay}


def stored_tables(source: Source, prefix: str) -> dict[str, Tensor]:
    """Those of a file, as `Translation.derived`: they have been compared."""
    names = (prefix + ANGLE, prefix + DECAY)
    return {name: source.read(name) for name in names if name in source.entries}


def _heads_and_decay(source: Source, answers: Answers, names: Names) -> tuple[int, str]:
    name = names.prefix + DECAY
    if name not in source.entries:
        said = answers.read(HEADS, LM_DECAY)
        return said[HEADS.name], "linspace" if said[LM_DECAY.name] else "pow2"
    stored = source.read(name).flatten()
    if not len(stored):
        raise ValueError(f"{name} is empty; fetch the file again")
    num_heads = answers.take(HEADS.name, len(stored), name)
    for rule in ("pow2", "linspace", *_constants(stored[0])):
        if _agree(log_decays(rule, num_heads), stored):
            return num_heads, answers.take("decay", rule, name)
    raise ValueError(
        f"{name} ({stored.tolist()[:4]}, ...) are the decays of no known rule: pow2 (torchscale), "
        "linspace (syncdoth's use_lm_decay) or one number for all heads"
    )


def _constants(log_decay: Tensor) -> list[str]:
    """One decay for all heads: the shortest decimal that has this logarithm in its dtype."""
    value = log_decay.double().exp().item()
    short = [float(f"{value:.{digits}g}") for digits in range(1, 10)]
    fits = [x for x in short if 0 < x <= 1 and torch.tensor(math.log(x)).to(log_decay) == log_decay]
    return [f"constant:{x}" for x in fits[:1]]


def _theta(source: Source, names: Names, width: int) -> Theta:
    name = names.prefix + ANGLE
    if name not in source.entries:
        return "linspace"
    stored = source.read(name).flatten()
    rules: tuple[Theta, ...] = ("linspace", "rope")
    for rule in rules:
        ours = frequencies(rule, width).repeat_interleave(2)
        if len(stored) == width and _agree(ours, stored):
            return rule
    raise ValueError(
        f"{name} ({len(stored)} angles) are the angles of no known rule for heads of width {width}:"
        " torchscale's (10000^-linspace(0, 1)) or RoPE's"
    )


def _agree(ours: Tensor, stored: Tensor) -> bool:
    """Equal but for the rounding of the stored dtype, and of float32 on the way."""
    tolerance = 4 * max(torch.finfo(stored.dtype).eps, 2.0**-20)
    error = (ours - stored.double()).abs()
    return bool((error <= tolerance * ours.abs() + 1e-6).all())
