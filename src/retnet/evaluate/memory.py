"""What a model must remember of a text, beside what a Transformer of its width would keep."""

from typing import cast

import torch

from retnet.mixers import Branch
from retnet.model import Decoder, state_bytes
from retnet.model.decoder import Layer

FEW, MANY = 1_000_000, 2_000_000
"""Tokens of texts that are both longer than any window."""


def state_bytes_per_text(model: Decoder) -> int:
    """Bytes of the state of one text, however long it is.

    Of a model that keeps something of every token, those after the first token.
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        _, state = model.hidden(torch.zeros(1, 1, dtype=torch.int64, device=device))
    return state_bytes(state)


def state_grows(model: Decoder) -> bool:
    """Whether the state takes more for a longer text, without end."""
    branches = [branch for layer in model.layers for branch in cast(Layer, layer).branches]
    short, long = (
        sum(cast(Branch, branch).state_size(tokens) for branch in branches)
        for tokens in (FEW, MANY)
    )
    return long > short


def key_value_cache_bytes(
    num_layers: int, d_model: int, num_tokens: int, bytes_per_value: int = 2
) -> int:
    """Bytes that a Transformer keeps of one text: a key and a value for each token and layer.

    Args:
        num_layers: layers with attention.
        d_model: width of the keys, and of the values, of all heads together: every head has its
            own. Grouped-query attention divides the result by queries per key.
        num_tokens: of the text so far.
        bytes_per_value: 2 for bfloat16 and float16.

    Example:
        >>> key_value_cache_bytes(num_layers=6, d_model=256, num_tokens=1000)
        6144000
    """
    return 2 * num_layers * d_model * num_tokens * bytes_per_value


def format_bytes(num_bytes: int) -> str:
    """Write a number of bytes for people: decimal units, three digits.

    Example:
        >>> format_bytes(393224)
        '393 kB'
    """
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
