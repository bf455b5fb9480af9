"""llama.cpp, through `llama-cpp-python`: a Llama of random weights, written with `gguf`.

Weights and cache are float16, its own default. Its flash attention reads prompts faster on a CPU
and decodes at a third of the speed (measured after 8,192 tokens: 26 tokens/s with it, 72 without),
so it reads prompts with it, as by default, and decodes without. All else is as its own programs
have it. Each row's cache is a buffer of its own (`kv_unified` off), so that every row reads as many
bytes as if it had come alone.
"""

import ctypes
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retnet.bench.peers.missing import import_peer, peer_version
from retnet.bench.peers.roles import GreedySteps, Opened, Prefiller, Speaker
from retnet.bench.sizes import ModelSize
from retnet.evaluate import key_value_cache_bytes

PACKAGE = "llama-cpp-python"
INSTALL = "pip install 'retnet[peers]', which compiles it for this machine in some minutes"
DTYPE = "float16"
BATCH = 2048  # tokens of a call, llama.cpp's own default
PAD = 256  # it rounds lengths of caches up to this


def prefiller(size: ModelSize) -> Prefiller:
    """Reads a prompt in batches, and keeps its cache."""
    model = _Model(size)
    kept = 0

    def read(tokens: Tensor) -> Tensor:
        nonlocal kept
        kept = _cache_bytes(size, tokens.shape[1])
        with_room = -(-tokens.shape[1] // PAD) * PAD
        model.reserve(with_room, 1)
        return model.read(tokens[0].tolist(), 0)

    return Prefiller(model.name, DTYPE, model.parameters, read, lambda: kept)


def speaker(size: ModelSize, longest: int, rows: int) -> Speaker:
    """Decodes after texts that it has read.

    Args:
        size: of the decoder.
        longest: tokens, of a row, that room is made for.
        rows: likewise.
    """
    model = _Model(size, flash_attention=False)
    model.reserve(-(-longest // PAD) * PAD, rows)
    text: list[int] = np.random.default_rng(0).integers(size.vocab_size, size=longest).tolist()

    def open_(context: int, rows: int, _steps: int) -> Opened:
        logits = model.extend(text[:context])
        model.fork(rows)
        read = context

        def step(tokens: Tensor) -> Tensor:
            nonlocal read
            read += 1
            return model.step(tokens.tolist(), read - 1)

        kept = rows * _cache_bytes(size, context)
        return Opened(GreedySteps(step, logits.expand(rows, -1)), kept, model.weight_bytes)

    return Speaker(model.name, DTYPE, model.parameters, open_)


def _nothing() -> None:
    """There is no context to free yet."""


class _Model:
    """A loaded model and its context: rows of a text, in caches of their own."""

    def __init__(self, size: ModelSize, *, flash_attention: bool = True) -> None:
        self._flash_attention = flash_attention
        self._api = api = _llama_cpp()
        self.name = f"llama.cpp ({PACKAGE} {peer_version(PACKAGE, INSTALL)})"
        self._size = size
        weights = dict(_weights(size))
        self.parameters = sum(weight.size for weight in weights.values())
        self.weight_bytes = sum(weight.nbytes for weight in weights.values())
        self._quiet = api.llama_log_callback(lambda _level, _text, _data: None)  # kept alive
        api.llama_log_set(self._quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "llama.gguf")
            _write(path, size, weights)
            settings = api.llama_model_default_params()
            settings.use_mmap = False  # the file goes away
            self._model = api.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise RuntimeError("llama.cpp did not load the model that gguf wrote")
        weakref.finalize(self, api.llama_model_free, self._model)  # the last made is called first
        self._context: Any = None
        self._free_context: Callable[[], object] = _nothing
        self._room = (0, 0)
        self._text: list[int] = []
        self._logits = torch.zeros(size.vocab_size)

    def reserve(self, tokens: int, rows: int) -> None:
        """Make room for so many rows of so many tokens; what was read is forgotten."""
        api = self._api
        if self._room != (tokens, rows):
            self._free_context()
            self._free_context = _nothing
            settings = api.llama_context_default_params()
            settings.n_ctx = tokens * rows
            settings.n_seq_max = rows
            settings.n_batch = BATCH
            settings.kv_unified = False
            if not self._flash_attention:
                settings.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
            settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
            settings.no_perf = True
            self._context = api.llama_init_from_model(self._model, settings)
            if not self._context:
                raise RuntimeError(f"llama.cpp has no room for {rows} rows of {tokens} tokens")
            self._free_context = weakref.finalize(self, api.llama_free, self._context)
            self._room = (tokens, rows)
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        self._text = []

    def read(self, tokens: list[int], begin: int) -> Tensor:
        """Let the first row read on from a position; returns logits (V,) after the last token."""
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            self._decode(part, [begin + start + i for i in range(len(part))], [0] * len(part))
        return self._row(-1)

    def extend(self, text: list[int]) -> Tensor:
        """Have the first row hold this text alone, reading only what it does not hold yet."""
        memory = self._api.llama_get_memory(self._context)
        held = len(self._text)
        if self._text != text[:held]:
            raise ValueError("llama.cpp's rows are opened in the order of their lengths")
        self._api.llama_memory_seq_rm(memory, 0, held, -1)
        if len(text) > held:
            self._logits = self.read(text[held:], held)
            self._text = text
        return self._logits

    def fork(self, rows: int) -> None:
        """Copy the first row's cache into the other rows' own."""
        memory = self._api.llama_get_memory(self._context)
        for row in range(1, self._room[1]):
            self._api.llama_memory_seq_rm(memory, row, -1, -1)
            if row < rows:
                self._api.llama_memory_seq_cp(memory, 0, row, -1, -1)

    def step(self, tokens: list[int], position: int) -> Tensor:
        """Logits (B, V) after one more token of every row."""
        rows = len(tokens)
        self._decode(tokens, [position] * rows, list(range(rows)))
        return torch.stack([self._row(row) for row in range(rows)])

    def _decode(self, tokens: list[int], positions: list[int], rows: list[int]) -> None:
        """Read tokens; logits are made for the last one of each row."""
        api, count = self._api, len(tokens)
        batch = api.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for i in range(count):
            batch.token[i], batch.pos[i] = tokens[i], positions[i]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = rows[i]
            batch.logits[i] = rows[i] not in rows[i + 1 : i + 2]
        status = api.llama_decode(self._context, batch)
        api.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama.cpp refused {count} tokens with status {status}")

    def _row(self, index: int) -> Tensor:
        pointer = self._api.llama_get_logits_ith(self._context, index)
        return torch.from_numpy(np.ctypeslib.as_array(pointer, (self._size.vocab_size,)).copy())


def _weights(size: ModelSize) -> Iterator[tuple[str, np.ndarray]]:
    """Random weights under their names in a GGUF file: matrices float16, norms float32."""
    random = np.random.default_rng(0)
    D, F = size.d_model, size.attention_ffn_width

    def matrix(out: int, into: int) -> np.ndarray:
        return (into**-0.5 * random.standard_normal((out, into))).astype(np.float16)

    yield "token_embd.weight", matrix(size.vocab_size, D)  # the head too
    yield "output_norm.weight", np.ones(D, np.float32)
    for layer in range(size.num_layers):
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", np.ones(D, np.float32)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{layer}.{name}.weight", matrix(D, D)
        for name in ("ffn_gate", "ffn_up"):
            yield f"blk.{layer}.{name}.weight", matrix(F, D)
        yield f"blk.{layer}.ffn_down.weight", matrix(D, F)


def _write(path: Path, size: ModelSize, weights: dict[str, np.ndarray]) -> None:
    gguf = import_peer("gguf", "gguf", INSTALL)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(size.d_model)
    writer.add_block_count(size.num_layers)
    writer.add_feed_forward_length(size.attention_ffn_width)
    writer.add_head_count(size.attention_heads)
    writer.add_head_count_kv(size.attention_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(size.d_model // size.attention_heads)
    writer.add_vocab_size(size.vocab_size)
    writer.add_tokenizer_model("none")  # tokens come as numbers
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _cache_bytes(size: ModelSize, num_tokens: int) -> int:
    return key_value_cache_bytes(size.num_layers, size.d_model, num_tokens)


def _llama_cpp() -> ModuleType:
    return import_peer("llama_cpp", PACKAGE, INSTALL)
