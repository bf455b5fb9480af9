"""Cases: what is measured, named once; tests and benchmarks read the same list."""

from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

from retnet.mixers.channel import GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import DecoderConfig, LayerConfig
from retnet.types import Form

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class OpCase:
    """Retention alone.

    Attributes:
        T: tokens.
        dtype: of q, k and v.
        others: forms measured besides the chunkwise one. `parallel` needs memory of T^2;
            the backward of `recurrent` would keep one S for each token and is not measured.
        B: rows.
        H: heads.
        D_k: key width of a head.
        D_v: value width of a head.
        peer_chunk: tokens of a chunk in torchscale's code; 512 is its own default.
    """

    T: int
    dtype: Precision
    others: tuple[Form, ...] = ()
    B: int = 1
    H: int = 2
    D_k: int = 256
    D_v: int = 512
    peer_chunk: int = 512

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's."""
        return getattr(torch, self.dtype)

    def fields(self) -> dict[str, int | str]:
        """What a record says of the case."""
        sizes: dict[str, int | str] = asdict(self)
        del sizes["others"], sizes["peer_chunk"]
        return sizes


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A decoder that torchscale can build too: as many parameters, the same products.

    Attributes:
        d_model: D.
        value_width: D_v of all heads together.
        num_heads: H.
        ffn_width: width inside the GLU.
        num_layers: layers.
        vocab_size: V; the head has weights of its own.
    """

    d_model: int = 512
    value_width: int = 1024
    num_heads: int = 2
    ffn_width: int = 1024
    num_layers: int = 4
    vocab_size: int = 4096

    def config(self) -> DecoderConfig:
        """Our decoder of this size."""
        layer = LayerConfig(
            mixer=RetentionConfig(num_heads=self.num_heads, value_width=self.value_width),
            channel=GLUConfig(width=self.ffn_width),
            repeat=self.num_layers,
        )
        return DecoderConfig(d_model=self.d_model, layers=(layer,), vocab_size=self.vocab_size)


@dataclass(frozen=True, kw_only=True)
class TrainCase:
    """A whole training step: forward, loss, backward, AdamW.

    Attributes:
        T: tokens of a row.
        precision: `bfloat16` is autocast over float32 weights.
        size: the decoder.
        B: rows.
        peer_chunk: tokens of a chunk in torchscale's code; 512 is its own default.
    """

    T: int
    precision: Precision
    size: ModelSize = ModelSize()
    B: int = 1
    peer_chunk: int = 512


@dataclass(frozen=True, kw_only=True)
class DecodeCase:
    """Decoding after ever longer texts.

    Attributes:
        marks: tokens read before the next ones are timed, increasing.
        steps: tokens timed at each mark.
        size: the decoder, float32.
    """

    marks: tuple[int, ...]
    steps: int
    size: ModelSize = ModelSize()


@dataclass(frozen=True, kw_only=True)
class FormsCase:
    """Disagreement between forms on a preset with fresh weights.

    Attributes:
        preset: its name.
        tokens: T.
        gains: what the linear weights of all layers are multiplied by, one run for each.
        vocab_size: V.
    """

    preset: str
    tokens: int
    gains: tuple[int, ...] = (1, 8, 64)
    vocab_size: int = 4096


@dataclass(frozen=True, kw_only=True)
class KillsCase:
    """A training run that is killed again and again, on Python's own standard library.

    Attributes:
        kills: SIGKILLs.
        steps: updates of the run; enough to outlast the kills.
        save_every: steps between checkpoints.
        seq_len: T.
        files: which of the library's files to learn from, a glob.
        seed: of the moments.
    """

    kills: int
    steps: int
    save_every: int = 20
    seq_len: int = 128
    files: str = "*.py"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DocumentCase:
    """One document, longer than memory would hold the activations of.

    Attributes:
        tokens: of the document; a byte each, from Python's own standard library.
        seq_len: tokens of a training step, which goes on with the state of the one before.
        whole: lengths that are trained on in one step, with nothing carried, for comparison.
        size: the decoder.
    """

    tokens: int
    seq_len: int
    whole: tuple[int, ...]
    size: ModelSize = ModelSize(
        d_model=256, value_width=512, num_heads=4, ffn_width=512, num_layers=4, vocab_size=257
    )


_TINY = ModelSize(
    d_model=16, value_width=32, num_heads=2, ffn_width=24, num_layers=2, vocab_size=64
)

OPS = {
    "2k-float32": OpCase(T=2048, dtype="float32", others=("parallel", "recurrent")),
    "2k-bfloat16": OpCase(T=2048, dtype="bfloat16", others=("parallel", "recurrent")),
    "8k-float32": OpCase(T=8192, dtype="float32"),
    "8k-bfloat16": OpCase(T=8192, dtype="bfloat16"),
}
QUICK_OPS = {
    f"quick-{dtype}": OpCase(
        T=96, dtype=dtype, others=("parallel", "recurrent"), D_k=8, D_v=16, peer_chunk=32
    )
    for dtype in ("float32", "bfloat16")
}
TRAINS = {
    "2k-float32": TrainCase(T=2048, precision="float32"),
    "2k-bfloat16": TrainCase(T=2048, precision="bfloat16"),
    "8k-float32": TrainCase(T=8192, precision="float32"),
    "8k-bfloat16": TrainCase(T=8192, precision="bfloat16"),
}
QUICK_TRAINS = {
    f"quick-{precision}": TrainCase(T=80, precision=precision, size=_TINY, peer_chunk=32)
    for precision in ("float32", "bfloat16")
}
DECODE = DecodeCase(
    marks=(1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000),
    steps=64,
)
QUICK_DECODE = DecodeCase(marks=(100, 200, 500), steps=8, size=_TINY)
FORMS = FormsCase(preset="small-4m", tokens=512)
QUICK_FORMS = FormsCase(preset="small-1m", tokens=40, vocab_size=64)
KILLS = KillsCase(kills=200, steps=6_000)
QUICK_KILLS = KillsCase(kills=1, steps=60, files="json/*.py")
DOCUMENT = DocumentCase(
    tokens=1_000_000, seq_len=4_096, whole=(4_096, 8_192, 16_384, 32_768, 65_536)
)
QUICK_DOCUMENT = DocumentCase(
    tokens=3_000, seq_len=256, whole=(512,), size=replace(_TINY, vocab_size=257)
)
