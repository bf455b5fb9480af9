"""Softmax attention: parameters around `retnet.ops.attention`."""

from retnet.mixers.attention.config import AttentionConfig, RandomPositions, ReRoPE
from retnet.mixers.attention.layer import Attention
from retnet.ops.rope_scaling import RoPEScaling

__all__ = ["Attention", "AttentionConfig", "RandomPositions", "ReRoPE", "RoPEScaling"]
