"""flash-linear-attention's `RetNetForCausalLM` (fla-org/flash-linear-attention, to 0.6.0).

Its RetNet has RoPE's angles, no score normaliser, and a head norm with or without weights. Files
from before February 2025 hold the two inner matrices of the gated network as one.
"""

import torch

from retnet.hub.foreign.answers import Answers, Question
from retnet.hub.foreign.common import (
    ends,
    is_tied,
    matrix,
    num_layers,
    refuse,
    sizes_agree,
    uniform_branches,
)
from retnet.hub.foreign.format import Format, States, Translation
from retnet.hub.foreign.rules import SAME, Grouped, Paired, Rule, Stacked, one
from retnet.hub.foreign.states import from_fla, to_fla
from retnet.hub.foreign.tensors import Source
from retnet.mixers.channel import GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import DecoderConfig, LayerConfig

MODEL_TYPE = Question(
    "model_type",
    str,
    "retnet (its other models have tensors of the same names)",
    choices=("retnet",),
)
HEADS = Question("num_heads", int, "hidden_size / 256", least=1)
EPS = Question("norm_eps", float, "1e-6 (its default) or 1e-5", least=0)
ACTIVATION = Question("hidden_act", str, "swish (its default)", choices=("swish", "silu"))
GROUPS = Question("num_kv_heads", int, "num_heads", default=None)
FUSED_NORM = Question("fuse_norm", bool, "true (its default) or false", default=True)

EMBEDDING, HEAD, LAYER = "model.embeddings.weight", "lm_head.weight", "model.layers.0."
HEAD_NORMS = ("attn.g_norm_swish_gate.weight", "attn.g_norm.weight")
REFUSED = {
    "feature_map": "a feature map of queries and keys",
    "attn": "layers of softmax attention between those of retention",
    "attnres_block_size": "attention residuals",
}


def _recognise(source: Source) -> str | None:
    names = [LAYER + name for name in ("attn.q_proj.weight", "attn_norm.weight", "mlp_norm.weight")]
    if not all(name in source.entries for name in (EMBEDDING, *names)):
        return None
    if source.config.get("model_type", "retnet") != "retnet":
        return None
    fused = LAYER + "mlp.up_proj.weight" not in source.entries
    grouped = len({source.entries[LAYER + f"attn.{x}_proj.weight"].shape for x in "qk"}) > 1
    return "flash-linear-attention's RetNet" + ", ".join(
        ["", *["fused gate and up"] * fused, *["grouped heads"] * grouped]
    )


def _describe(source: Source, answers: Answers) -> Translation:
    for name, what in REFUSED.items():
        if source.config.get(name) is not None:
            raise ValueError(f"{name} of {source.origin}: {what} cannot be converted")

    def rows(name: str) -> int:
        return matrix(source, LAYER + name)[0]

    affine = [name for name in HEAD_NORMS if LAYER + name in source.entries]
    gate = LAYER + "attn.g_proj.weight" in source.entries
    answers.take("use_output_gate", gate)
    answers.take("elementwise_affine", bool(affine))
    # the output has one column for each value
    _, value_width = matrix(source, LAYER + "attn.o_proj.weight")
    answers.read(MODEL_TYPE)
    said = answers.read(EPS, ACTIVATION)
    if affine:
        head_width = torch.Size(source.entries[LAYER + affine[0]].shape).numel()
        num_heads = answers.take("num_heads", value_width // max(head_width, 1), affine[0])
    else:
        num_heads = answers.read(HEADS)["num_heads"]
    num_groups = num_heads * rows("attn.k_proj.weight") // rows("attn.q_proj.weight")
    answers.take("num_kv_heads", num_groups)
    retention = RetentionConfig(
        num_heads=num_heads,
        key_width=rows("attn.q_proj.weight"),
        value_width=value_width,
        theta="rope",
        pairs="half",
        score_norm="none",
        gate=gate,
        head_norm_affine=bool(affine),
        norm_eps=said["norm_eps"],
    )
    _, width = matrix(source, LAYER + "mlp.down_proj.weight")
    vocab_size, d_model = matrix(source, EMBEDDING)
    layers = num_layers(source.entries, "model.layers.")
    sizes_agree(
        answers,
        vocab_size=vocab_size,
        hidden_size=d_model,
        intermediate_size=width,
        num_hidden_layers=layers,
    )
    config = DecoderConfig(
        d_model=d_model,
        layers=(
            LayerConfig(
                mixer=retention,
                channel=GLUConfig(width=width, activation="swish"),
                repeat=layers,
            ),
        ),
        vocab_size=vocab_size,
        norm_eps=said["norm_eps"],
        tie_embeddings=is_tied(source, answers, "tie_word_embeddings", EMBEDDING, HEAD),
    )
    found = _rules(
        config,
        num_groups,
        affine[0] if affine else "",
        fused_mlp=LAYER + "mlp.up_proj.weight" not in source.entries,
    )
    return Translation(config, (*found, *ends(config, EMBEDDING, HEAD, HEAD in source.entries)))


def _express(config: DecoderConfig, answers: Answers) -> Translation:
    mixer, channel = uniform_branches(config, "fla")
    refuse(
        "fla",
        (not isinstance(mixer, RetentionConfig), "a mixer other than retention"),
        (not isinstance(channel, GLUConfig), "a channel mixer other than glu"),
    )
    refuse(
        "fla",
        (mixer.theta != "rope", f'theta = "{mixer.theta}"'),
        (mixer.decay != "pow2", f'decay = "{mixer.decay}"'),
        (mixer.score_norm != "none", f'score_norm = "{mixer.score_norm}"'),
        (mixer.head_norm != "rms", f'head_norm = "{mixer.head_norm}"'),
        (mixer.bias, "projections with biases"),
        (mixer.initial_state, "a learned initial state"),
        (channel.bias, "a gated network with biases"),
        (channel.activation != "swish", f'activation = "{channel.activation}"'),
        (config.norm != "rms" or not config.norm_weight, "norms other than RMSNorm with weights"),
        (mixer.norm_eps != config.norm_eps, "head norms with an epsilon of their own"),
        (config.residual != "pre", f'residual = "{config.residual}"'),
        (config.embed_scale, "scaled embeddings"),
        (config.embed_norm, "an embedding norm"),
    )
    widths = mixer.key_width or config.d_model, mixer.value_width or 2 * config.d_model
    expand_k, expand_v = (width / config.d_model for width in widths)
    said = answers.read(GROUPS, FUSED_NORM)
    num_groups = said["num_kv_heads"] or mixer.num_heads
    norm = ""
    if mixer.head_norm_affine:
        norm = HEAD_NORMS[0 if said["fuse_norm"] and mixer.gate else 1]
    described = {
        "model_type": "retnet",
        "architectures": ["RetNetForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "expand_k": expand_k,
        "expand_v": expand_v,
        "num_heads": mixer.num_heads,
        "num_kv_heads": None if num_groups == mixer.num_heads else num_groups,
        "intermediate_size": channel.width,
        "num_hidden_layers": config.num_layers,
        "hidden_act": "swish",
        "norm_eps": config.norm_eps,
        "use_output_gate": mixer.gate,
        "elementwise_affine": mixer.head_norm_affine,
        "fuse_norm": said["fuse_norm"],
        "tie_word_embeddings": config.tie_embeddings,
    }
    found = _rules(config, num_groups, norm, fused_mlp=False)
    return Translation(config, (*found, *ends(config, EMBEDDING, HEAD, False)), described)


def _rules(
    config: DecoderConfig, num_groups: int, head_norm: str, *, fused_mlp: bool
) -> tuple[Rule, ...]:
    found = [one("norm.weight", "model.norm.weight")]
    for index, (mixer, channel) in enumerate(config.branches):
        assert isinstance(mixer, RetentionConfig)
        assert isinstance(channel, GLUConfig)
        layer, theirs = f"layers.{index}", f"model.layers.{index}"
        grouped = num_groups < mixer.num_heads
        for name in "qkvgo" if mixer.gate else "qkvo":
            change = SAME
            if name in "qk" and mixer.pairs != "half":
                change = Paired(mixer.num_heads, mixer.pairs, "half")
            if name in "kv" and grouped:
                change = Grouped(mixer.num_heads, num_groups)
            weight = f"{name}_proj.weight"
            found.append(one(f"{layer}.branches.0.{weight}", f"{theirs}.attn.{weight}", change))
        if head_norm:
            ours = f"{layer}.branches.0.head_norm_weight"
            found.append(one(ours, f"{theirs}.{head_norm}"))
        inner, mlp = f"{layer}.branches.1", f"{theirs}.mlp"
        pair = f"{inner}.gate_proj.weight", f"{inner}.up_proj.weight"
        if fused_mlp:
            stacked = Stacked(channel.width, channel.width)
            found.append(Rule(pair, (f"{mlp}.gate_proj.weight",), stacked))
        else:
            found += [one(ours, f"{mlp}.{ours.rpartition('branches.1.')[2]}") for ours in pair]
        found += [
            one(f"{inner}.down_proj.weight", f"{mlp}.down_proj.weight"),
            one(f"{layer}.norms.0.weight", f"{theirs}.attn_norm.weight"),
            one(f"{layer}.norms.1.weight", f"{theirs}.mlp_norm.weight"),
        ]
    return tuple(found)


FLA = Format(
    name="fla",
    title="flash-linear-attention's RetNet, old and new",
    recognise=_recognise,
    describe=_describe,
    express=_express,
    states=States(from_fla, to_fla),
)
