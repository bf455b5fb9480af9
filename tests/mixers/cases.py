"""Configs of every mixer in the registries, small; the contract tests run on each."""

from typing import Any

import torch
from torch import nn

from retnet.mixers import CHANNEL_MIXERS, MIXERS, BranchConfig
from retnet.mixers.attention import ReRoPE, RoPEScaling
from retnet.mixers.retention import RetentionConfig

D = 12  # the width of the residual stream in these tests

# registry name -> what its config is given, once per case
TOKEN_CASES: dict[str, list[dict[str, Any]]] = {
    "retention": [
        {"num_heads": 3},
        {"num_heads": 2, "value_width": 12, "theta": "linspace", "pairs": "interleaved"},
        {
            "num_heads": 2,
            "key_width": 8,
            "value_width": 10,
            "decay": "constant:1",
            "theta": "none",
            "score_norm": "none",
            "gate": False,
            "head_norm": "layer",
            "head_norm_affine": True,
            "bias": True,
        },
        {"num_heads": 1, "decay": "linspace", "head_norm": "none", "norm_eps": 1e-5},
        {"num_heads": 2, "key_width": 10, "theta": "none"},  # nothing turns: D_k may be odd
    ],
    "shifted_retention": [
        {"retention": RetentionConfig(num_heads=3)},
        {"retention": RetentionConfig(num_heads=2, decay="linspace:2:9", bias=True)},
    ],
    "mean_retention": [
        {"num_heads": 3},
        {"num_heads": 2, "key_width": 6, "value_width": 10, "decay": "pow2", "token_shift": False},
    ],
    "attention": [
        {"num_heads": 3},
        {"num_heads": 6, "num_kv_heads": 2, "pairs": "interleaved", "rope_base": 500.0},
        {"num_heads": 2, "num_kv_heads": 1, "bias": True},
        {"num_heads": 4, "position": "none"},
        {"num_heads": 6, "num_kv_heads": 2, "head_size": 6, "position": "alibi"},
        {"num_heads": 2, "num_kv_heads": 1, "position": "kerple_power", "qk_bias": True},
        {"num_heads": 2, "position": "sandwich", "window": 5},
        {"num_heads": 3, "window": 4},
        {"num_heads": 6, "num_kv_heads": 2, "window": 3, "sinks": 2, "position": "kerple_log"},
        {"num_heads": 3, "scores": "key_norm", "log_n": "beyond", "train_len": 5, "window": 7},
        {"num_heads": 3, "scores": "cosine", "train_len": 8, "log_n": "always"},
        {"num_heads": 2, "num_kv_heads": 1, "weights": "l2", "position": "alibi", "urpe": 3},
        {"num_heads": 3, "weights": "exp", "position": "none"},
        {"num_heads": 2, "num_kv_heads": 1, "position": "xpos"},
        {"num_heads": 3, "position": "xpos", "pairs": "interleaved", "window": 4, "sinks": 1},
        {"num_heads": 2, "num_kv_heads": 1, "position": "general"},
        {"num_heads": 2, "num_kv_heads": 1, "rerope": ReRoPE(window=3)},
        {"num_heads": 3, "rerope": ReRoPE(window=3, slowdown=2.0)},
        {"num_heads": 3, "scaling": RoPEScaling(kind="yarn", factor=4.0, original_len=64)},
        {
            "num_heads": 2,
            "window": 5,
            "sinks": 1,
            "scaling": RoPEScaling(kind="dynamic", factor=2.0, original_len=3),
        },
    ],
    "lru": [
        {},
        {"recurrence": "real", "r_min": 0.0, "r_max": 0.5},
        {"state_width": 7, "max_phase": 0.5, "skip": True, "block": "glu"},
        {"state_width": 5, "recurrence": "real", "skip": True},
    ],
    "linear_attention": [
        {"num_heads": 3},
        {"num_heads": 2, "position": "rope", "eps": 1e-3},
        {"num_heads": 3, "feature_map": "relu", "position": "rope", "pairs": "interleaved"},
        {"num_heads": 4, "feature_map": "identity", "normalize": False, "bias": True},
        {"num_heads": 2, "feature_map": "relu", "normalize": False, "position": "rope"},
    ],
    "gau": [
        {"key_width": 8},
        {"key_width": 5, "position": "none", "floor": 16, "bias": True},
        {"key_width": 6, "width": 10, "kernel": "relu2", "init": "gau", "bias": True},
        {"key_width": 4, "kernel": "relu2", "n": 50},
        {"key_width": 4, "kernel": "laplace", "pairs": "interleaved"},
    ],
    "flash": [
        {"key_width": 6, "chunk": 4},
        {"key_width": 4, "width": 10, "chunk": 2, "normalizer": "chunk", "init": "gau"},
        {"key_width": 5, "chunk": 64, "position": "none", "bias": True},
        {"key_width": 4, "chunk": 1, "pairs": "interleaved"},
    ],
    "aft": [
        {},
        {"width": 7, "bias": True},
        {"variant": "local", "max_len": 64, "window": 4},
        {"variant": "local", "max_len": 64, "window": 1, "width": 5, "bias": True},
        {"variant": "full", "max_len": 64},
        {"variant": "full", "max_len": 64, "width": 10, "bias": True},
    ],
    "h3": [
        {"head_dim": 3, "state_size": 4, "shift_taps": 3},
        {"head_dim": 1, "state_size": 6, "shift_taps": 20, "step_min": 0.01, "step_max": 1.0},
    ],
    "hyena": [
        {"l_max": 70, "filter_order": 6},
        {"l_max": 64, "order": 3, "filter_order": 5, "emb_dim": 7, "sine_frequency": 4.0},
    ],
    "s4d": [{"state_size": 6}, {"state_size": 2, "step_min": 0.01, "step_max": 1.0}],
    "qrnn": [
        {},
        {"width": 7, "window": 3, "pooling": "ifo", "zoneout": 0.3},  # evaluated: no zoneout
        {"window": 1, "pooling": "f", "out_proj": False},
    ],
    "lstm": [{}, {"width": 7}],
    "gru": [{}, {"width": 7}],
    "rwkv": [{}, {"width": 7}, {"token_shift": False}],
}
CHANNEL_CASES: dict[str, list[dict[str, Any]]] = {
    "glu": [{"width": 20}, {"width": 7, "activation": "relu", "bias": True}],
    "ffn": [
        {"width": 20},
        {"width": 7, "activation": "swish", "inner_norm": True},
        {"width": 7, "bias": False},
    ],
    "rwkv_ffn": [{"width": 20}, {"width": 7, "token_shift": False}],
    "shifted_glu": [{"width": 20}, {"width": 7, "activation": "relu", "bias": True}],
}

ONE_FORM = ("attention", "gau", "gru", "hyena", "lstm", "glu", "ffn", "rwkv_ffn", "shifted_glu")
"""What computes the same way whatever form is asked for."""

TWO_FORMS = ("flash", "h3", "s4d")
"""What takes parallel for chunkwise."""


def cases() -> list[tuple[str, dict[str, Any]]]:
    """Name and fields of every case."""
    tables = (TOKEN_CASES, CHANNEL_CASES)
    return [(name, given) for table in tables for name, all_ in table.items() for given in all_]


def config(name: str, given: dict[str, Any]) -> BranchConfig:
    return (MIXERS | CHANNEL_MIXERS)[name](**given)


def build(name: str, given: dict[str, Any]) -> nn.Module:
    """The branch in float64, its weights large enough for its parts to matter."""
    torch.manual_seed(3)
    module = config(name, given).build(D).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module
