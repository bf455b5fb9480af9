"""The Llama of `transformers`, with PyTorch's scaled dot product attention."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from retnet.bench.peers.missing import import_peer, peer_version
from retnet.bench.peers.roles import (
    GreedySteps,
    Opened,
    Prefiller,
    Speaker,
    Trainee,
    num_parameters,
    weight_bytes,
)
from retnet.bench.sizes import ModelSize
from retnet.evaluate import key_value_cache_bytes

INSTALL = "pip install 'retnet[hf]'"
LONGEST = 1 << 20  # positions are computed, not stored


def trainee(size: ModelSize) -> Trainee:
    """Trained as people do: its own head and cross-entropy, no cache."""
    model = llama(size)

    def loss(inputs: Tensor, _targets: Tensor) -> Tensor:
        return model(input_ids=inputs, labels=inputs, use_cache=False).loss  # it shifts them itself

    return Trainee(name_of_llama(), model, loss)


def prefiller(size: ModelSize, dtype: torch.dtype) -> Prefiller:
    """Reads a prompt in one pass and keeps its cache, as `generate` does."""
    model = llama(size).eval().to(dtype)

    kept = 0

    @torch.inference_mode()
    def read(tokens: Tensor) -> Tensor:
        nonlocal kept
        kept = _cache_bytes(size, dtype, tokens.shape[1])
        return model(input_ids=tokens, use_cache=True, logits_to_keep=1).logits[0, -1]

    return Prefiller(name_of_llama(), said(dtype), num_parameters(model), read, lambda: kept)


def speaker(size: ModelSize, dtype: torch.dtype) -> Speaker:
    """Decodes with a static cache, which is filled with random keys and values: no faster."""
    model = llama(size).eval().to(dtype)
    cache_type = _transformers().StaticCache

    @torch.inference_mode()
    def open_(context: int, rows: int, steps: int) -> Opened:
        cache: Any = cache_type(config=model.config, max_cache_len=context + steps)
        width = size.d_model // size.attention_heads
        cache.early_initialization(rows, size.attention_heads, width, dtype, torch.device("cpu"))
        random = torch.Generator().manual_seed(0)
        for layer in cache.layers:
            for kept in (layer.keys, layer.values):
                one = torch.empty_like(kept[0, :, :context]).normal_(generator=random)
                kept[:, :, :context] = one
            layer.cumulative_length.fill_(context)

        @torch.inference_mode()
        def step(tokens: Tensor) -> Tensor:
            given = model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True)
            return given.logits[:, -1]

        kept_bytes = rows * _cache_bytes(size, dtype, context)
        return Opened(
            GreedySteps(step, torch.zeros(rows, size.vocab_size)), kept_bytes, weight_bytes(model)
        )

    return Speaker(name_of_llama(), said(dtype), num_parameters(model), open_)


def _cache_bytes(size: ModelSize, dtype: torch.dtype, num_tokens: int) -> int:
    return key_value_cache_bytes(
        size.num_layers, size.d_model, num_tokens, bytes_per_value=dtype.itemsize
    )


def llama(size: ModelSize) -> Any:
    """A new model of this size."""
    transformers = _transformers()
    config = transformers.LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.d_model,
        intermediate_size=size.attention_ffn_width,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.attention_heads,
        num_key_value_heads=size.attention_heads,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


def _transformers() -> ModuleType:
    return import_peer("transformers", "transformers", INSTALL)


def name_of_llama() -> str:
    """With its version."""
    return f"transformers {peer_version('transformers', INSTALL)} Llama"


def said(dtype: torch.dtype) -> str:
    """A dtype in records."""
    return str(dtype).removeprefix("torch.")
