"""Cases: what is measured, named once; tests and benchmarks read the same list."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from retnet.bench.sizes import LONG_TEXT, MEDIUM, SMALL, TINY, ModelSize
from retnet.model import DecoderConfig, preset
from retnet.ops.packed_linear import Weights
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
        suite: whether the suite of all benches measures it too.
    """

    T: int
    dtype: Precision
    others: tuple[Form, ...] = ()
    B: int = 1
    H: int = 2
    D_k: int = 256
    D_v: int = 512
    peer_chunk: int = 512
    suite: bool = True

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's."""
        return getattr(torch, self.dtype)

    def fields(self) -> dict[str, int | str]:
        """What a record says of the case."""
        sizes: dict[str, int | str] = asdict(self)
        del sizes["others"], sizes["peer_chunk"], sizes["suite"]
        return sizes


@dataclass(frozen=True, kw_only=True)
class ScanCase:
    """The diagonal recurrence alone.

    Attributes:
        dtype: of factors, inputs and outputs.
        factors: one for each `channel`, or for each `token` as well.
        others: forms measured besides the chunkwise one; `recurrent` is a loop in Python. The
            backward of `parallel` keeps log2(T) tensors as large as the input.
        T: tokens.
        B: rows.
        N: channels.
        suite: whether the suite of all benches measures it too.
    """

    dtype: Literal["float32", "complex64"]
    factors: Literal["channel", "token"]
    others: tuple[Form, ...] = ("recurrent", "parallel")
    T: int = 4096
    B: int = 1
    N: int = 512
    suite: bool = True

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's."""
        return getattr(torch, self.dtype)

    def fields(self) -> dict[str, int | str]:
        """What a record says of the case."""
        sizes: dict[str, int | str] = asdict(self)
        del sizes["others"], sizes["suite"]
        return sizes


@dataclass(frozen=True, kw_only=True)
class RWKVCase:
    """RWKV-4, ours and other people's, in one activity.

    Attributes:
        activity: what is measured.
        model: name of the size.
        dtype: of the weights; in training, `bfloat16` is autocast over float32 weights. Decoding is
            measured with weights of each kind.
        T: tokens of a row.
        B: rows.
        d_model: D.
        num_layers: L.
        vocab_size: V.
        rounds: calls timed of each.
        suite: whether the suite of all benches measures it too.
    """

    activity: Literal["train", "prefill", "decode"]
    model: str = "small"
    dtype: Precision = "float32"
    T: int = 1024
    B: int = 1
    d_model: int = 512
    num_layers: int = 6
    vocab_size: int = 8192
    rounds: int = 3
    suite: bool = False

    def config(self) -> DecoderConfig:
        """The decoder of this size."""
        config = preset("rwkv-169m", self.vocab_size)
        [layer] = config.layers
        channel = replace(layer.channel, width=4 * self.d_model)  # type: ignore[type-var]
        layer = replace(layer, channel=channel, repeat=self.num_layers)
        return replace(config, d_model=self.d_model, layers=(layer,))


@dataclass(frozen=True, kw_only=True)
class TrainCase:
    """A whole training step: forward, loss, backward, AdamW.

    Attributes:
        T: tokens of a row.
        precision: `bfloat16` is autocast over float32 weights.
        size: the decoder.
        B: rows.
        rivals: who takes turns with ours, by their names in `trainees.py`.
        rounds: steps timed of each.
        apart: whether each also takes a step in a process of its own, for its memory; one without
            rivals takes all of them there.
        peer_chunk: tokens of a chunk in torchscale's code; 512 is its own default.
        suite: whether the suite of all benches measures it too.
    """

    T: int
    precision: Precision
    size: ModelSize = SMALL
    B: int = 1
    rivals: tuple[str, ...] = ()
    rounds: int = 3
    apart: bool = True
    peer_chunk: int = 512
    suite: bool = True


@dataclass(frozen=True, kw_only=True)
class PrefillCase:
    """Reading a prompt.

    Attributes:
        T: tokens of the prompt.
        dtype: of the weights; llama.cpp has float16 for bfloat16.
        size: the decoder.
        rivals: who takes turns with ours, by their names in `prefillers.py`.
        rounds: prompts timed of each.
        apart: whether each also reads one in a process of its own, for its memory.
        suite: whether the suite of all benches measures it too.
    """

    T: int
    dtype: Precision
    size: ModelSize = SMALL
    rivals: tuple[str, ...] = ()
    rounds: int = 3
    apart: bool = True
    suite: bool = True


@dataclass(frozen=True, kw_only=True)
class ReadCase:
    """Reading one ever longer text, ours alone.

    Attributes:
        marks: tokens read where speed and memory are noted, increasing.
        dtype: of the weights.
        size: the decoder.
        suite: whether the suite of all benches measures it too.
    """

    marks: tuple[int, ...]
    dtype: Precision
    size: ModelSize = SMALL
    suite: bool = True


@dataclass(frozen=True)
class DecodeCase:
    """Decoding rows of texts, after as many tokens.

    Attributes:
        context: tokens read before the next ones are timed.
        B: rows.
        size: the decoder.
        rivals: who takes turns with ours, by their names in `speakers.py`.
        suite: whether the suite of all benches measures it too.
    """

    context: int
    B: int
    size: ModelSize = SMALL
    rivals: tuple[str, ...] = ()
    suite: bool = True


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
    size: ModelSize = LONG_TEXT


@dataclass(frozen=True, kw_only=True)
class SessionsCase:
    """Sessions on disk, of which some are read, written to and forked.

    Attributes:
        num: of the sessions, one turn each.
        samples: of them that are used, drawn at random.
        size: the decoder whose states they are.
    """

    num: int
    samples: int
    size: ModelSize


@dataclass(frozen=True, kw_only=True)
class BesideCase:
    """Requests with long prompts, to our engine and to other people's.

    Attributes:
        context: tokens of each prompt.
        rows: requests, all at once.
        written: tokens for each.
        weights: of ours.
        size: of the decoders.
        turns: of each.
        suite: whether the suite of all benches measures it too.
    """

    context: int
    rows: int
    written: int
    weights: Weights = "bfloat16"
    size: ModelSize = SMALL
    turns: int = 1
    suite: bool = False


@dataclass(frozen=True, kw_only=True)
class LoadCase:
    """Clients at a server, each with one request at a time.

    Attributes:
        clients: at once.
        requests: of a turn.
        preset: the decoder's name; its tokens are bytes.
        weights: how the model computes, see `retnet.model.pack`; `saved` is as it is.
        running: texts that the server writes at once.
        turns: of the server and of the engine alone.
        suite: whether the suite of all benches measures it too.
    """

    clients: int
    requests: int
    preset: str = "small-16m"
    weights: Weights | Literal["saved"] = "float32"
    running: int = 16
    turns: int = 2
    suite: bool = False


@dataclass(frozen=True, kw_only=True)
class SoakCase:
    """A server in use, killed half way and started again.

    Attributes:
        minutes: of use, without starts and checks.
        preset: the decoder's name; its tokens are bytes.
        clients: at once, each with one request at a time: more than can run and wait together.
        running: texts that the server writes at once.
        queue: requests that may wait.
        memory_mib: of sessions that need not be read again: it is full soon, and what grows later
            is a leak.
        talkers: share of the clients that hold conversations.
        turns: of a conversation.
        kept: conversations; of more, the oldest are deleted.
        leaving: share of the requests whose clients leave.
        replays: conversations that are had again, never interrupted.
        warm: share of each process' time that its memory's slope leaves out: caches fill.
    """

    minutes: float
    preset: str = "small-1m"
    clients: int = 20
    running: int = 8
    queue: int = 6
    memory_mib: int = 16
    talkers: float = 0.6
    turns: int = 8
    kept: int = 60
    leaving: float = 0.1
    replays: int = 6
    warm: float = 0.3

    def of_minutes(self, minutes: float) -> "SoakCase":
        """The same for another time."""
        return replace(self, minutes=minutes)


OPS = {
    "2k-float32": OpCase(T=2048, dtype="float32", others=("parallel", "recurrent")),
    "2k-bfloat16": OpCase(T=2048, dtype="bfloat16", others=("parallel", "recurrent"), suite=False),
    "8k-float32": OpCase(T=8192, dtype="float32", suite=False),
    "8k-bfloat16": OpCase(T=8192, dtype="bfloat16"),
}
QUICK_OPS = {
    f"quick-{dtype}": OpCase(
        T=96, dtype=dtype, others=("parallel", "recurrent"), D_k=8, D_v=16, peer_chunk=32
    )
    for dtype in ("float32", "bfloat16")
}
SCANS = {
    "complex, of channels": ScanCase(dtype="complex64", factors="channel"),  # LRU
    "real, of channels": ScanCase(dtype="float32", factors="channel", N=1024),  # SLRU
    "real, of tokens": ScanCase(dtype="float32", factors="token"),  # QRNN
    "complex, of channels, 8 rows": ScanCase(
        dtype="complex64", factors="channel", B=8, others=("recurrent",)
    ),
    "real, of tokens, 8 rows": ScanCase(
        dtype="float32", factors="token", B=8, others=("recurrent",)
    ),
}
QUICK_SCANS = {
    "quick complex64": ScanCase(dtype="complex64", factors="channel", T=40, N=8),
    "quick float32": ScanCase(dtype="float32", factors="token", T=40, N=8),
}
RWKV_169M: dict[str, Any] = {
    "model": "169m",
    "d_model": 768,
    "num_layers": 12,
    "vocab_size": 50_277,
}
RWKVS = {
    **{
        f"{activity}, small {dtype}": RWKVCase(activity=activity, dtype=dtype)
        for activity in ("train", "prefill")
        for dtype in ("float32", "bfloat16")
    },
    "train, 169m bfloat16": RWKVCase(
        activity="train", dtype="bfloat16", T=512, rounds=1, **RWKV_169M
    ),
    **{
        f"prefill, 169m {dtype}": RWKVCase(activity="prefill", dtype=dtype, **RWKV_169M)
        for dtype in ("float32", "bfloat16")
    },
    **{f"decode, small, {B}": RWKVCase(activity="decode", B=B) for B in (1, 8)},
    **{f"decode, 169m, {B}": RWKVCase(activity="decode", B=B, **RWKV_169M) for B in (1, 8)},
}
RWKV_TINY: dict[str, Any] = {
    "model": "tiny",
    "d_model": 32,
    "num_layers": 2,
    "vocab_size": 64,
    "T": 40,
    "rounds": 1,
}
QUICK_RWKVS = {
    "train": RWKVCase(activity="train", dtype="bfloat16", **RWKV_TINY),
    "prefill": RWKVCase(activity="prefill", **RWKV_TINY),
    "decode": RWKVCase(activity="decode", **RWKV_TINY),
    "decode, 2": RWKVCase(activity="decode", B=2, **RWKV_TINY),
}
TRAINERS = ("torchscale", "transformers")
TRAINS = {
    "small, 2k bfloat16": TrainCase(T=2048, precision="bfloat16", rivals=TRAINERS),
    "small, 8k bfloat16": TrainCase(T=8192, precision="bfloat16", rivals=TRAINERS),
    "medium, 8k bfloat16": TrainCase(
        T=8192,
        precision="bfloat16",
        size=MEDIUM,
        rivals=TRAINERS,
        rounds=2,
        apart=False,
        suite=False,
    ),
    "small, 64k bfloat16": TrainCase(T=65_536, precision="bfloat16", rounds=1),
    "small, 2k float32": TrainCase(T=2048, precision="float32", rivals=TRAINERS, suite=False),
    "small, 2k bfloat16, attention": TrainCase(
        T=2048, precision="bfloat16", rivals=("attention",), suite=False
    ),
    "small, 8k bfloat16, attention": TrainCase(
        T=8192, precision="bfloat16", rivals=("attention",), suite=False
    ),
}
QUICK_TRAINS = {
    "tiny, float32": TrainCase(
        T=80, precision="float32", size=TINY, rivals=(*TRAINERS, "attention"), apart=False
    ),
    "tiny, bfloat16": TrainCase(T=96, precision="bfloat16", size=TINY, rounds=1, peer_chunk=32),
}
READ_MARKS = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000)
PREFILLERS = ("attention", "transformers", "llama.cpp")
PREFILLS = {
    "small, 2k": PrefillCase(T=2048, dtype="bfloat16", rivals=PREFILLERS, apart=False),
    "small, 8k": PrefillCase(T=8192, dtype="bfloat16", rivals=PREFILLERS, rounds=2),
    "small, 32k": PrefillCase(T=32_768, dtype="bfloat16", rivals=PREFILLERS, rounds=1, suite=False),
    "medium, 8k": PrefillCase(
        T=8192, dtype="bfloat16", size=MEDIUM, rivals=PREFILLERS, rounds=1, suite=False
    ),
}
QUICK_PREFILLS = {
    "tiny": PrefillCase(T=300, dtype="bfloat16", size=TINY, rivals=PREFILLERS, rounds=2)
}
READS = {
    "small": ReadCase(marks=READ_MARKS, dtype="bfloat16"),
    "small, a million": ReadCase(
        marks=(*READ_MARKS, 256_000, 512_000, 1_000_000), dtype="bfloat16", suite=False
    ),
}
QUICK_READS = {"tiny": ReadCase(marks=(100, 200, 500), dtype="bfloat16", size=TINY)}
SPEAKERS = (
    "attention float32",
    "attention bfloat16",
    "compiled attention float32",
    "compiled attention bfloat16",
    "compiled attention int8",
    "transformers float32",
    "transformers bfloat16",
    "llama.cpp",
)
ALL_SPEAKERS = (
    *SPEAKERS,
    "torchscale float32",
    "torchscale bfloat16",
)
WITHOUT_READING = tuple(name for name in SPEAKERS if name != "llama.cpp")
FEWER_CACHES = (
    "attention float32",
    "compiled attention bfloat16",
    "compiled attention int8",
    "transformers float32",
    "llama.cpp",
)
"""The quicker of two dtypes, PyTorch's attention in float32: 24 GiB do not hold the others too."""
DECODES = {
    **{f"small, {T}, {B}": DecodeCase(T, B, rivals=SPEAKERS) for T in (512, 2048) for B in (1, 8)},
    **{f"small, 8192, {B}": DecodeCase(8192, B, rivals=ALL_SPEAKERS) for B in (1, 8)},
    **{f"small, 8192, {B}": DecodeCase(8192, B) for B in (2, 32)},
    "small, 32768, 1": DecodeCase(32_768, 1, rivals=WITHOUT_READING),
    "small, 131072, 1": DecodeCase(131_072, 1, suite=False),
    "medium, 8192, 1": DecodeCase(8192, 1, size=MEDIUM, rivals=SPEAKERS, suite=False),
    "medium, 8192, 8": DecodeCase(8192, 8, size=MEDIUM, rivals=FEWER_CACHES, suite=False),
}
QUICK_DECODES = {
    f"tiny, {T}, {B}": DecodeCase(T, B, size=TINY, rivals=ALL_SPEAKERS)
    for T, B in ((70, 1), (70, 2), (130, 1))
}
FORMS = FormsCase(preset="small-4m", tokens=512)
QUICK_FORMS = FormsCase(preset="small-1m", tokens=40, vocab_size=64)
KILLS = KillsCase(kills=200, steps=6_000)
QUICK_KILLS = KillsCase(kills=1, steps=24, save_every=8, seq_len=32, files="json/*.py")
DOCUMENT = DocumentCase(
    tokens=1_000_000, seq_len=4_096, whole=(4_096, 8_192, 16_384, 32_768, 65_536)
)
QUICK_DOCUMENT = DocumentCase(
    tokens=3_000, seq_len=256, whole=(512,), size=replace(TINY, vocab_size=257)
)
SESSIONS = SessionsCase(num=10_000, samples=200, size=TINY)
QUICK_SESSIONS = SessionsCase(num=20, samples=5, size=replace(TINY, vocab_size=257))
SOAK = SoakCase(minutes=10.0)
QUICK_SOAK = SoakCase(minutes=0.05, clients=8, running=2, queue=2, kept=20, replays=2, turns=3)
LOADS = {
    f"{clients} clients": LoadCase(clients=clients, requests=requests)
    for clients, requests in ((1, 8), (4, 16), (16, 48), (32, 48))
}
QUICK_LOADS = {
    "2 clients": LoadCase(
        clients=2,
        requests=4,
        preset="small-1m",
        weights="saved",
        running=2,
        turns=1,
        suite=True,
    )
}
BESIDES = {"small, 8192, 4": BesideCase(context=8192, rows=4, written=128)}
QUICK_BESIDES = {
    "tiny": BesideCase(context=40, rows=2, written=8, weights="float32", size=TINY, suite=True)
}
