"""Checkpoints that look like something that is converted, and are not: refused by name."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from retnet.hub.foreign.tensors import Source

NAMES: tuple[tuple[str, str], ...] = (
    (
        r"(^|\.)(_flat_param|flat_param)(_\d+)?$|_fsdp_wrapped_module|_fpw_module",
        "weights flattened and sharded by FSDP; write a whole state_dict where it was trained",
    ),
    (
        r"\.(qweight|qzeros|g_idx|SCB|absmax|quant_map|quant_state\..*|weight_scale)$",
        "quantised weights (GPTQ, AWQ or bitsandbytes); convert the model before it was quantised",
    ),
    (
        r"\.att(ention)?\.(k_k|r_k|x_rg?)$",
        "RWKV-7, whose states are matrices; of RWKVs, version 4 alone is converted",
    ),
    (
        r"\.time_maa_",
        "RWKV-6, whose states are matrices; of RWKVs, version 4 alone is converted",
    ),
    (
        r"blocks\.\d+\.att(ention)?\.(gate|ln_x)\.",
        "RWKV-5, whose states are matrices; of RWKVs, version 4 alone is converted",
    ),
    (
        r"blocks\.\d+\.ffnPre\.",
        "an RWKV-4 with channel mixing in place of the first time mixing (ffnPre), which is not "
        "implemented",
    ),
    (r"^(_forward_module\.)?(head_q|head_k|copy_mask)", "an RWKV-4 that copies tokens (head_qk)"),
    (r"(^|\.)pos_emb_[xy]$", "an RWKV-4 with embeddings of two-dimensional positions (pos_emb)"),
    (r"\.tiny_(ln|q|k|v|mask)", "an RWKV-4a, which has a small attention beside it (tiny_att)"),
    (r"\.att\.(qq|kk|vv|oo|time_mix_(qq|kk|vv))(\.|$)", "an RWKV-4 with attention (qq, kk, vv)"),
    (
        r"^layers\.\d+\.attention\.wq\.weight$",
        "Llama's own names, before transformers reordered its rotation; convert it with "
        "transformers' convert_llama_weights_to_hf",
    ),
    (r"\.lora_(A|B)\.", "a LoRA adapter; merge it into its base where it was trained"),
    (r"\.moe_layer\.", "layers of experts (MoE), which this decoder does not have"),
    (
        r"layers\.\d+\.retention\.\w+_proj\.(A|B)\.",
        "multiway layers (torchscale's multiway), which this decoder does not have",
    ),
    (r"\.attn\.(gk_proj|b_proj|a_proj|f_proj)\.", "another model of flash-linear-attention"),
    (r"\.mixer\.(A_log|in_proj)", "a Mamba"),
    (r"^(retnet\.)?layers\.\d+\.retentions?\.\d+\.", "Jamie Stirling's RetNet, which has xPos"),
)
"""Patterns of names of tensors, and what files with such names are."""

# Names that models of the `retnet` type had in syncdoth's configs before September 2023.
OLD_SYNCDOTH = ("qk_dim", "v_dim", "ffn_proj_size", "use_default_gamma")


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def refuse_known(source: Source) -> None:
    """Raise ValueError if the checkpoint is one of those that cannot be converted."""
    for pattern, what in NAMES:
        name = next((name for name in source.entries if re.search(pattern, name)), None)
        if name is not None:
            raise ValueError(f"{source.path} cannot be converted: it has {what} ({name})")
    old = [name for name in OLD_SYNCDOTH if name in source.config]
    if old:
        raise ValueError(
            f"{source.path} cannot be converted: it is of syncdoth/RetNet before September 2023 "
            f"({', '.join(old)} in {source.origin}), whose layers differ"
        )
    not_float = [name for name, entry in source.entries.items() if entry.dtype not in FLOATS]
    if not_float:
        entry = source.entries[not_float[0]]
        raise ValueError(
            f"{source.path} cannot be converted: its numbers are not all of 16, 32 or 64 "
            f"bits with a point ({not_float[0]}, {entry.dtype}), as quantised models have"
        )


def unknown(source: Source, known: str) -> ValueError:
    """The error for a checkpoint of no known format."""
    names = sorted(source.entries)
    config: Mapping[str, Any] = source.config
    kind = f' of model_type "{config["model_type"]}"' if "model_type" in config else ""
    return ValueError(
        f"{source.path} is a checkpoint{kind} of no format that is known; it has {len(names)} "
        f"tensors ({', '.join(names[:4])}, ...), and known are {known}"
    )
