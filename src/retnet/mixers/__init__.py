"""Mixers: one file per rival, parameters around an op; the registries name them all."""

from retnet.mixers.aft import AFTConfig
from retnet.mixers.attention import AttentionConfig
from retnet.mixers.branch import ALONE, Branch, BranchConfig, Depth
from retnet.mixers.channel import FFNConfig, GLUConfig
from retnet.mixers.flash import FLASHConfig
from retnet.mixers.gated_rnn import GRUConfig, LSTMConfig
from retnet.mixers.gau import GAUConfig
from retnet.mixers.h3 import H3Config
from retnet.mixers.hyena import HyenaConfig
from retnet.mixers.linear_attention import LinearAttentionConfig
from retnet.mixers.lru import LRUConfig
from retnet.mixers.mean_retention import MeanRetentionConfig
from retnet.mixers.qrnn import QRNNConfig
from retnet.mixers.retention import RetentionConfig
from retnet.mixers.rwkv import RWKVConfig
from retnet.mixers.rwkv_channel import RWKVFFNConfig
from retnet.mixers.s4d import S4DConfig
from retnet.mixers.shifted import ShiftedGLUConfig, ShiftedRetentionConfig

MIXERS: dict[str, type[BranchConfig]] = {
    "retention": RetentionConfig,
    "shifted_retention": ShiftedRetentionConfig,
    "mean_retention": MeanRetentionConfig,
    "attention": AttentionConfig,
    "rwkv": RWKVConfig,
    "linear_attention": LinearAttentionConfig,
    "lru": LRUConfig,
    "gau": GAUConfig,
    "flash": FLASHConfig,
    "aft": AFTConfig,
    "lstm": LSTMConfig,
    "gru": GRUConfig,
    "qrnn": QRNNConfig,
    "h3": H3Config,
    "hyena": HyenaConfig,
    "s4d": S4DConfig,
}
"""Token mixers: name in configs and on the command line -> config class."""

CHANNEL_MIXERS: dict[str, type[BranchConfig]] = {
    "glu": GLUConfig,
    "ffn": FFNConfig,
    "rwkv_ffn": RWKVFFNConfig,
    "shifted_glu": ShiftedGLUConfig,
}
"""Channel mixers, likewise."""

__all__ = ["ALONE", "CHANNEL_MIXERS", "MIXERS", "Branch", "BranchConfig", "Depth"]
