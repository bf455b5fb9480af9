"""Load what public RetNet implementations computed, and their weights into our decoder."""

import re
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from golden_files import FOLDER, golden
from retnet.mixers.channel import FFNConfig, GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import Decoder, DecoderConfig, LayerConfig

TORCHSCALE = ("torchscale_base", "torchscale_options", "torchscale_deepnorm", "torchscale_v1")
SYNCDOTH = ("syncdoth_glu", "syncdoth_ffn")
FLA = ("fla_retnet_gqa", "fla_retnet_mha", "fla_retnet_nogate")


def decoder(name: str, score_norm: str, dtype: torch.dtype) -> Decoder:
    """Our decoder with the weights of a golden file."""
    config = golden(name).config
    weights = load_file(FOLDER / f"{name}.safetensors")
    if name in FLA:
        described, renamed = _fla(config, weights)
    else:
        described, renamed = _torchscale(config, weights, score_norm)
    model = Decoder(described)
    model.load_state_dict(renamed)
    return model.to(dtype).eval()


_TORCHSCALE_NAMES = {
    r"output_projection|lm_head": "lm_head",
    r"layernorm_embedding": "embed_norm",
    r"layer_norm": "norm",
    r"layers\.(\d+)\.retention_layer_norm": r"layers.\1.norms.0",
    r"layers\.(\d+)\.final_layer_norm": r"layers.\1.norms.1",
    r"layers\.(\d+)\.retention\.out_proj": r"layers.\1.branches.0.o_proj",
    r"layers\.(\d+)\.retention\.([qkvg]_proj)": r"layers.\1.branches.0.\2",
    r"layers\.(\d+)\.ffn\.fc2": r"layers.\1.branches.1.down_proj",
    r"layers\.(\d+)\.ffn\.ffn_layernorm": r"layers.\1.branches.1.inner_norm",
}
_TORCHSCALE_GLU = {
    r"layers\.(\d+)\.ffn\.fc1": r"layers.\1.branches.1.gate_proj",
    r"layers\.(\d+)\.ffn\.gate": r"layers.\1.branches.1.up_proj",
}
_TORCHSCALE_FFN = {r"layers\.(\d+)\.ffn\.fc1": r"layers.\1.branches.1.up_proj"}

_FLA_NAMES = {
    r"embeddings": "embed_tokens",
    r"layers\.(\d+)\.attn_norm": r"layers.\1.norms.0",
    r"layers\.(\d+)\.mlp_norm": r"layers.\1.norms.1",
    r"layers\.(\d+)\.attn\.([qkvgo]_proj)": r"layers.\1.branches.0.\2",
    r"layers\.(\d+)\.mlp\.((gate|up|down)_proj)": r"layers.\1.branches.1.\2",
}


def _torchscale(
    config: dict[str, Any], weights: dict[str, Tensor], score_norm: str
) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """Describe and rename a torchscale or syncdoth model; they share names but for a prefix."""
    weights = {key.removeprefix("model."): tensor for key, tensor in weights.items()}
    first = config.get("torchscale_layout") == "v1"
    glu = "layers.0.ffn.gate.weight" in weights
    width, eps = config["decoder_ffn_embed_dim"], config["layernorm_eps"]
    activation = config["activation_fn"]
    retention = RetentionConfig(
        num_heads=config["decoder_retention_heads"],
        value_width=config.get("decoder_value_embed_dim", 2 * config["decoder_embed_dim"]),
        decay="linspace" if config.get("use_lm_decay") else "pow2",
        theta="linspace",
        pairs="interleaved",
        score_norm=score_norm,  # type: ignore[arg-type]
        head_norm="layer" if first else "rms",
        norm_eps=eps,
        bias=first,
    )
    if glu:
        channel = GLUConfig(width=width, activation=activation)
    else:
        inner = "layers.0.ffn.ffn_layernorm.weight" in weights
        channel = FFNConfig(width=width, activation=activation, inner_norm=inner, norm_eps=eps)
    described = DecoderConfig(
        d_model=config["decoder_embed_dim"],
        layers=(LayerConfig(mixer=retention, channel=channel, repeat=config["decoder_layers"]),),
        vocab_size=config["vocab_size"],
        norm="layer" if first else "rms",
        norm_eps=eps,
        residual="deepnorm" if config.get("deepnorm") else "pre",
        tie_embeddings=config.get("share_decoder_input_output_embed", False),
        embed_scale=not config.get("no_scale_embedding", True),
        embed_norm=config.get("layernorm_embedding", False),
    )
    names = _TORCHSCALE_NAMES | (_TORCHSCALE_GLU if glu else _TORCHSCALE_FFN)
    kept = {key: w for key, w in weights.items() if not key.startswith("retnet_rel_pos.")}
    return described, _rename(kept, names)


def _fla(
    config: dict[str, Any], weights: dict[str, Tensor]
) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """Describe and rename a flash-linear-attention model."""
    weights = {key.removeprefix("model."): tensor for key, tensor in weights.items()}
    affine, gate = config["elementwise_affine"], config["use_output_gate"]
    groups = config["num_heads"] // (config["num_kv_heads"] or config["num_heads"])
    retention = RetentionConfig(
        num_heads=config["num_heads"],
        key_width=int(config["hidden_size"] * config["expand_k"]),
        value_width=int(config["hidden_size"] * config["expand_v"]),
        theta="rope",
        pairs="half",
        score_norm="none",
        gate=gate,
        head_norm_affine=affine,
        norm_eps=config["norm_eps"],
    )
    channel = GLUConfig(width=config["intermediate_size"], activation=config["hidden_act"])
    described = DecoderConfig(
        d_model=config["hidden_size"],
        layers=(LayerConfig(mixer=retention, channel=channel, repeat=config["num_hidden_layers"]),),
        vocab_size=config["vocab_size"],
        norm_eps=config["norm_eps"],
        tie_embeddings=config["tie_word_embeddings"],
    )
    renamed = {}
    for key, tensor in weights.items():
        layer = re.match(r"layers\.(\d+)\.attn\.g_norm(_swish_gate)?\.weight", key)
        if layer:
            renamed[f"layers.{layer[1]}.branches.0.head_norm_weight"] = tensor
        elif key.endswith(("attn.k_proj.weight", "attn.v_proj.weight")):
            renamed |= _rename({key: _repeat_heads(tensor, config, groups)}, _FLA_NAMES)
        else:
            renamed |= _rename({key: tensor}, _FLA_NAMES | {r"norm": "norm"})
    return described, renamed


def _repeat_heads(weight: Tensor, config: dict[str, Any], groups: int) -> Tensor:
    """Give each head its own copy of the keys or values that its group shares."""
    heads = weight.unflatten(0, (config["num_heads"] // groups, -1))
    return heads.repeat_interleave(groups, 0).flatten(0, 1)


def _rename(weights: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Rename modules; what no rule names keeps its name, and a strict load judges the result."""
    renamed = {}
    for key, tensor in weights.items():
        module, _, parameter = key.rpartition(".")
        for pattern, name in names.items():
            if match := re.fullmatch(pattern, module):
                module = match.expand(name)
                break
        renamed[f"{module}.{parameter}"] = tensor
    return renamed
