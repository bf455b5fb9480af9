"""What is measured on a GPU, named once, in the order of what it is worth: time may run out."""

from dataclasses import asdict, dataclass, replace

from retnet.mixers.channel import FFNConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import DecoderConfig, LayerConfig, preset

LIMIT_SECONDS = 540.0
"""A whole run: what is under way at its end may take half a minute more, within ten minutes."""

TOKEN_HEADS = 2**19
HEADS = 8
PEER_CHUNK = 64  # tokens; of flash-linear-attention's, and the smallest in use


@dataclass(frozen=True, kw_only=True)
class OpCase:
    """Retention alone, in bfloat16.

    Attributes:
        D_k: key width of a head.
        D_v: value width of a head.
        T: tokens.
        B: rows.
        H: heads.
        graph: also measured as a CUDA graph, because launching may take longer than computing.
    """

    D_k: int
    D_v: int
    T: int
    B: int
    H: int = HEADS
    graph: bool = False

    @property
    def token_heads(self) -> int:
        """B T H."""
        return self.B * self.T * self.H

    @property
    def name(self) -> str:
        """As people call it."""
        return f"D_k/D_v {self.D_k}/{self.D_v}, T {self.T:,}, B {self.B}"

    def fields(self) -> dict[str, int | str]:
        """What a record says of the case."""
        sizes = asdict(self)
        del sizes["graph"]
        return {**sizes, "dtype": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class TrainCase:
    """A training step of a model: forward, loss, backward, AdamW; autocast over float32 weights.

    Attributes:
        config: the decoder with retention.
        name: of its size.
        T: tokens of a row.
        rows: numbers of rows to try, the first that fits in memory is measured.
        checkpointing: of gradients, layer by layer.
    """

    config: DecoderConfig
    name: str
    T: int
    rows: tuple[int, ...]
    checkpointing: bool


@dataclass(frozen=True, kw_only=True)
class DecodeCase:
    """Decoding after contexts of several lengths, in bfloat16.

    Attributes:
        config: the decoder with retention.
        name: of its size.
        batches: numbers of rows.
        contexts: tokens read before.
        steps: tokens timed after each, in blocks of `block`.
        block: tokens of a block.
    """

    config: DecoderConfig
    name: str
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    steps: int = 40
    block: int = 8


def sweep(D_k: int, D_v: int, *lengths: int) -> list[OpCase]:
    """Cases of a fixed number of token-heads, so that only the length differs."""
    return [
        OpCase(D_k=D_k, D_v=D_v, T=T, B=TOKEN_HEADS // (T * HEADS), graph=T <= 2048)
        for T in lengths
    ]


def _tiny() -> DecoderConfig:
    """The paper's structure, as small as it gets."""
    whole = preset("paper-200m", vocab_size=512)
    mixer = RetentionConfig(num_heads=2, decay="linspace", head_norm="layer", bias=True)
    layer = LayerConfig(mixer=mixer, channel=FFNConfig(width=64), repeat=2)
    return replace(whole, d_model=32, layers=(layer,))


VOCABULARY = 100_288  # of the paper's later models; that of its first ones is not stated
ATTENTION_HEAD = 128

_MAIN = sweep(256, 256, 16_384) + sweep(256, 512, 16_384) + sweep(128, 128, 16_384)
_FEW_HEADS = [
    OpCase(D_k=D_k, D_v=D_v, T=T, B=1, graph=True)
    for T in (512, 2048)
    for D_k, D_v in ((256, 512), (128, 128))
]
OPS = [
    *_MAIN,
    *sweep(256, 256, 512, 2048, 8192, 65_536, 1024, 4096, 32_768),
    *sweep(256, 512, 512, 2048, 8192, 65_536),
    *sweep(128, 128, 512, 2048, 8192, 65_536),
    *_FEW_HEADS,
    *sweep(128, 256, 16_384, 512, 2048, 8192, 65_536),
    *sweep(64, 64, 16_384, 512, 2048, 8192, 65_536),
]
QUICK_OPS = [OpCase(D_k=16, D_v=32, T=70, B=1, H=2, graph=True)]
TRAINS = [
    TrainCase(
        config=preset("paper-1.3b", VOCABULARY),
        name="paper-1.3b",
        T=8192,
        rows=rows,
        checkpointing=checkpointing,
    )
    for rows, checkpointing in (((8, 4, 2, 1), True), ((1,), False))
]
QUICK_TRAINS = [TrainCase(config=_tiny(), name="tiny", T=40, rows=(2,), checkpointing=True)]
DECODE = DecodeCase(
    config=preset("paper-6.7b", VOCABULARY),
    name="paper-6.7b",
    batches=(1, 8, 64),
    contexts=(1024, 2048, 4096, 8192, 16_384),
)
QUICK_DECODE = DecodeCase(
    config=_tiny(), name="tiny", batches=(1, 2), contexts=(8, 16), steps=2, block=1
)
