"""Other people's code, measured beside ours: optional, and imported only when asked for.

The peer is the official RetNet in torchscale. Its chunkwise form in 0.3.0 is, line for line, that
of its last public commit; so one wheel, without its dependencies, is all a comparison needs.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NoReturn

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

TORCHSCALE_INSTALL = "pip install --no-deps torchscale==0.3.0"

# What torchscale imports but a plain decoder never calls: activation checkpointing and sharding,
# and stochastic depth. timm would also pull in torchvision, whose default wheels do not load
# beside a CPU build of torch.
_NEVER_CALLED = {
    "fairscale.nn": ("checkpoint_wrapper", "wrap"),
    "timm.models.layers": ("drop_path",),
}


class PeerMissing(RuntimeError):
    """A peer cannot be imported; the message and `install` say how to get it.

    Args:
        peer: name of the package.
        reason: what is wrong, as the rest of the sentence.
        install: the shell command that puts it right.
    """

    def __init__(self, peer: str, reason: str, install: str) -> None:
        super().__init__(f"{peer} {reason}; it is optional, to measure beside ours: {install}")
        self.peer = peer
        self.install = install


def torchscale_version() -> str:
    """Return the version of torchscale that is installed, to be written beside its results.

    Raises:
        PeerMissing: torchscale is not installed.
    """
    try:
        return importlib.metadata.version("torchscale")
    except importlib.metadata.PackageNotFoundError as error:
        raise PeerMissing("torchscale", "is not installed", TORCHSCALE_INSTALL) from error


def torchscale_retention(
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


def torchscale_decoder(
    *,
    vocab_size: int,
    d_model: int,
    value_width: int,
    num_heads: int,
    ffn_width: int,
    num_layers: int,
    chunk_size: int,
) -> nn.Module:
    """Build torchscale's RetNet decoder in its chunkwise form, as its own base presets have it.

    GLU with swish, RMS norms with eps 1e-6, pre-norm, untied head, no embedding scale, no dropout,
    decay 1 - 2^(-5-h). It runs in float32 and under bfloat16 autocast. Do not cast it with
    `.bfloat16()`: that rounds its decays and angles too, and changes the function.

    Args:
        vocab_size: V.
        d_model: D.
        value_width: D_v of all heads together.
        num_heads: H.
        ffn_width: width inside the GLU.
        num_layers: number of layers.
        chunk_size: C; a T that is not a multiple of it is padded to one, and costs as much.

    Returns:
        A module from tokens (B, T) int64 to logits (B, T, V).

    Raises:
        ValueError: heads do not divide the widths.
        PeerMissing: torchscale cannot be imported.

    Source:
        torchscale 0.3.0, `torchscale/architecture/retnet.py`.
    """
    if d_model % (2 * num_heads):
        raise ValueError(
            f"d_model ({d_model}) must be a multiple of twice num_heads ({num_heads}), for keys "
            "rotate in pairs; change one of them"
        )
    if value_width % num_heads:
        raise ValueError(
            f"value_width ({value_width}) must be a multiple of num_heads ({num_heads}); "
            "change one of them"
        )
    architecture, config = _torchscale()
    settings = config.RetNetConfig(
        vocab_size=vocab_size,
        decoder_embed_dim=d_model,
        decoder_value_embed_dim=value_width,
        decoder_retention_heads=num_heads,
        decoder_ffn_embed_dim=ffn_width,
        decoder_layers=num_layers,
        activation_fn="swish",
        layernorm_eps=1e-6,
        chunkwise_recurrent=True,
        recurrent_chunk_size=chunk_size,
    )
    embedding = nn.Embedding(vocab_size, d_model)  # the caller's part in torchscale
    nn.init.normal_(embedding.weight, std=d_model**-0.5)
    return _Logits(architecture.RetNetDecoder(settings, embed_tokens=embedding))


class _Logits(nn.Module):
    """A torchscale decoder that returns its logits alone."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits of every token."""
        return self.decoder(tokens)[0]


def _torchscale() -> tuple[ModuleType, ModuleType]:
    """Import torchscale's RetNet modules: architecture, config."""
    try:
        importlib.import_module("torchscale")
        with _stand_ins():
            return (
                importlib.import_module("torchscale.architecture.retnet"),
                importlib.import_module("torchscale.architecture.config"),
            )
    except ModuleNotFoundError as error:
        missing = error.name == "torchscale"
        reason = "is not installed" if missing else f"lacks the module {error.name}"
        raise PeerMissing("torchscale", reason, TORCHSCALE_INSTALL) from error


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
        "retnet.bench.peers imported torchscale without fairscale and timm; to use activation "
        "checkpointing, sharding or stochastic depth, import torchscale first, by yourself"
    )


__all__ = [
    "TORCHSCALE_INSTALL",
    "PeerMissing",
    "torchscale_decoder",
    "torchscale_retention",
    "torchscale_version",
]
