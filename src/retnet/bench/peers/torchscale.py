"""The official RetNet: torchscale.

Its chunkwise form in 0.3.0 is, line for line, that of its last public commit; so one wheel, without
its dependencies, is all a comparison needs.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.bench.peers.missing import import_peer, peer_version
from retnet.bench.peers.roles import (
    GreedySteps,
    Opened,
    Speaker,
    Trainee,
    num_parameters,
    weight_bytes,
)
from retnet.bench.sizes import ModelSize

INSTALL = "pip install --no-deps torchscale==0.3.0"

# What torchscale imports but a plain decoder never calls: activation checkpointing and sharding,
# and stochastic depth. timm would also pull in torchvision, whose default wheels do not load
# beside a CPU build of torch.
_NEVER_CALLED = {
    "fairscale.nn": ("checkpoint_wrapper", "wrap"),
    "timm.models.layers": ("drop_path",),
}


def version() -> str:
    """Return the version of torchscale that is installed, to be written beside its results.

    Raises:
        PeerMissing: torchscale is not installed.
    """
    return peer_version("torchscale", INSTALL)


def chunkwise_retention(
    log_decay: Float[Tensor, " H"],
    *,
    key_width: int,
    value_width: int,
    chunk_size: int,
    dtype: torch.dtype,
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Prepare torchscale's chunkwise retention; its decay tables are made here, not in the call.

    The official decoder makes the tables once for all layers, so a call to the op should not pay
    for them. With o the plain retention, i a token's index in its chunk, a the decay per token,
    C the chunk length and S what the earlier chunks left, torchscale gives

        o_i / (c_i max(r_i, u)),       c_i = sqrt(sum_(j<=i) a^j)
        r_i = max(1, sum_(j<=i) |q_i . k_j| a^(i-j) / c_i),    taken over this chunk only
        u = max(1, max over D_v of sum over D_k of |S| / sum_(j<C) a^j)

    with r and u outside autograd. The divisors restart at every chunk, so results depend on C; the
    head norm that follows hides them, up to its eps.

    Args:
        log_decay: natural logarithm of each head's decay per token, float32 or better; its device
            is where the op runs.
        key_width: D_k.
        value_width: D_v, of one head.
        chunk_size: C; torchscale's own default is 512.
        dtype: of q, k, v and the tables. The op has no casts: all must agree, bfloat16 included.

    Returns:
        A function of q, k (B, T, H, D_k) and v (B, T, H, D_v), differentiable in all three; q
        rotated, k rotated and scaled. Contiguous inputs are viewed as the official decoder has
        them, without a copy. It returns (B, T / C, C, H, D_v); `.flatten(1, 2)` copies. A T that is
        not a multiple of C is a ValueError: only torchscale's decoder pads.

    Raises:
        PeerMissing: torchscale cannot be imported.

    Source:
        torchscale 0.3.0, `torchscale/component/multiscale_retention.py`.
    """
    architecture, config = _torchscale()
    num_heads = log_decay.shape[0]
    settings = config.RetNetConfig(
        decoder_embed_dim=num_heads * key_width,
        decoder_value_embed_dim=num_heads * value_width,
        decoder_retention_heads=num_heads,
        recurrent_chunk_size=chunk_size,
    )
    with torch.device("meta"):  # its projections are never used here: no memory, no random numbers
        op = architecture.MultiScaleRetention(
            settings, num_heads * key_width, num_heads * value_width, num_heads
        )
    rel_pos = architecture.RetNetRelPos(settings).to(log_decay.device)
    # In half precision a decay near 1 would round to 1, so only finished tables are cast.
    rel_pos.decay = log_decay.detach().to(torch.promote_types(dtype, torch.float32))
    _, tables = rel_pos(1, chunkwise_recurrent=True)
    tables = tuple(table.to(dtype) for table in tables)

    def run(
        q: Float[Tensor, "B T H D_k"], k: Float[Tensor, "B T H D_k"], v: Float[Tensor, "B T H D_v"]
    ) -> Float[Tensor, "B num_chunks C H D_v"]:
        if q.shape[1] % chunk_size:
            raise ValueError(
                f"T ({q.shape[1]}) must be a multiple of chunk_size ({chunk_size}) for "
                "torchscale's op; change one of them"
            )
        return op.chunk_recurrent_forward(
            q.transpose(1, 2), k.transpose(1, 2), v.flatten(2), tables
        )

    return run


def trainee(size: ModelSize, chunk_size: int) -> Trainee:
    """Trained in its chunkwise form, with PyTorch's cross-entropy.

    Args:
        size: of the decoder.
        chunk_size: C; a T that is not a multiple of it is padded to one, and costs as much.
    """
    model = decoder(size, chunk_size)

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs)[0].flatten(0, 1).float(), targets.flatten())

    return Trainee(f"torchscale {version()}", model, loss)


def speaker(size: ModelSize, dtype: torch.dtype) -> Speaker:
    """Decodes in its recurrent form, from a random state: no faster than from a real one.

    In bfloat16 its decays and angles are rounded too, which changes what it computes, and no time.
    """
    model: Any = decoder(size).eval().to(dtype)

    @torch.inference_mode()
    def open_(context: int, rows: int, steps: int) -> Opened:
        key_width, value_width = (
            width // size.num_heads for width in (size.d_model, size.value_width)
        )
        shape = (size.num_heads, value_width, key_width)
        random = torch.Generator().manual_seed(0)
        decay = model.retnet_rel_pos.decay.exp()
        state = {
            layer: {
                "prev_key_value": torch.randn(1, *shape, generator=random)
                .to(dtype)
                .repeat(rows, 1, 1, 1),
                "scale": 1 / (1 - decay),
            }
            for layer in range(size.num_layers)
        }
        # It takes the whole text, looks at the last token, and at the length for its position.
        text = torch.zeros(rows, context + steps, dtype=torch.int64)
        read = context

        @torch.inference_mode()
        def step(tokens: Tensor) -> Tensor:
            nonlocal read
            text[:, read] = tokens
            read += 1
            return model(text[:, :read], incremental_state=state)[0][:, -1]

        kept_bytes = sum(layer["prev_key_value"].nbytes for layer in state.values())
        return Opened(
            GreedySteps(step, torch.zeros(rows, size.vocab_size)), kept_bytes, weight_bytes(model)
        )

    said = str(dtype).removeprefix("torch.")
    by = f"torchscale {version()}"
    return Speaker(by, said, num_parameters(model), open_)


def decoder(size: ModelSize, chunk_size: int | None = None) -> nn.Module:
    """Build torchscale's RetNet decoder as its own base presets have it, with a tied head.

    GLU with swish, RMS norms with eps 1e-6, pre-norm, no embedding scale, no dropout, decay
    1 - 2^(-5-h). It runs in float32 and under bfloat16 autocast.

    Args:
        size: of the decoder.
        chunk_size: C of the chunkwise form; None for the recurrent form.

    Returns:
        A module from tokens (B, T) int64 to a tuple that begins with logits (B, T, V).

    Raises:
        ValueError: heads do not divide the widths.
        PeerMissing: torchscale cannot be imported.

    Source:
        torchscale 0.3.0, `torchscale/architecture/retnet.py`.
    """
    if size.d_model % (2 * size.num_heads):
        raise ValueError(
            f"d_model ({size.d_model}) must be a multiple of twice num_heads ({size.num_heads}), "
            "for keys rotate in pairs; change one of them"
        )
    if size.value_width % size.num_heads:
        raise ValueError(
            f"value_width ({size.value_width}) must be a multiple of num_heads ({size.num_heads}); "
            "change one of them"
        )
    architecture, config = _torchscale()
    settings = config.RetNetConfig(
        vocab_size=size.vocab_size,
        decoder_embed_dim=size.d_model,
        decoder_value_embed_dim=size.value_width,
        decoder_retention_heads=size.num_heads,
        decoder_ffn_embed_dim=size.ffn_width,
        decoder_layers=size.num_layers,
        activation_fn="swish",
        layernorm_eps=1e-6,
        share_decoder_input_output_embed=True,
        chunkwise_recurrent=chunk_size is not None,
        recurrent_chunk_size=chunk_size or 0,
    )
    torch.manual_seed(0)
    embedding = nn.Embedding(size.vocab_size, size.d_model)  # the caller's part in torchscale
    nn.init.normal_(embedding.weight, std=1 / size.d_model)  # small, for the head is tied to it
    return architecture.RetNetDecoder(settings, embed_tokens=embedding)


def _torchscale() -> tuple[ModuleType, ModuleType]:
    """Import torchscale's RetNet modules: architecture, config."""
    import_peer("torchscale", "torchscale", INSTALL)
    with _stand_ins():
        architecture, config = (
            import_peer(f"torchscale.architecture.{name}", "torchscale", INSTALL)
            for name in ("retnet", "config")
        )
    return architecture, config


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Let torchscale import what it never calls here, then take the stand-ins away again."""
    added = [name for name in _NEVER_CALLED if name not in sys.modules]
    for name in added:
        module = ModuleType(name)
        for attribute in _NEVER_CALLED[name]:
            setattr(module, attribute, _refuse)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def _refuse(*_args: object, **_kwargs: object) -> NoReturn:
    raise RuntimeError(
        "retnet.bench imported torchscale without fairscale and timm; to use activation "
        "checkpointing, sharding or stochastic depth, import torchscale first, by yourself"
    )
