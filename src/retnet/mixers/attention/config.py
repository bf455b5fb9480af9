"""What a layer of softmax attention may be, and which of its options go together."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from retnet.ops.attention.reach import Reach
from retnet.ops.attention.rule import Weights
from retnet.ops.attention.temperature import LogN
from retnet.ops.rope_scaling import RoPEScaling
from retnet.ops.rotation import PairLayout

if TYPE_CHECKING:
    from retnet.mixers.attention.layer import Attention

Position = Literal[
    "rope", "none", "alibi", "kerple_power", "kerple_log", "sandwich", "xpos", "general"
]
Scores = Literal["scaled", "key_norm", "cosine"]


@dataclass(frozen=True, kw_only=True)
class ReRoPE:
    """Rotary position that lets no distance grow much beyond a window, for trained models.

    Attributes:
        window: w; distances below it stay. A quarter to half of the training length is usual.
        slowdown: k; a larger distance d counts as `w + (d - w) / k`; None: as w.
    """

    window: int
    slowdown: float | None = None

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(
                f"window ({self.window}) must be at least 1; a quarter of train_len is usual"
            )
        if self.slowdown is not None and not self.slowdown >= 1:
            raise ValueError(f"slowdown ({self.slowdown}) must be at least 1; 1 is plain RoPE")


@dataclass(frozen=True, kw_only=True)
class RandomPositions:
    """Positions that each text of a training step has, drawn anew; evaluation counts as ever.

    Attributes:
        kind: `subset`: some of 0 to length - 1 in order (Ruoss et al. 2023, arXiv:2305.16843).
            `exponential`: evenly spaced up to an exponential number whose mean is the text's
            length.
        length: positions to choose from, of `subset` alone; at least the longest text.
    """

    kind: Literal["subset", "exponential"]
    length: int | None = None

    def __post_init__(self) -> None:
        if (self.kind == "subset") != (self.length is not None):
            raise ValueError(
                f'length ({self.length}) goes with kind "subset", and kind is "{self.kind}"; give '
                "it the length of the longest text to be read, or leave it out"
            )
        if self.length is not None and self.length < 1:
            raise ValueError(f"length ({self.length}) must be at least 1; 2048 is usual")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Softmax attention (Vaswani et al. 2017, arXiv:1706.03762), as the Transformers of today.

    Attributes:
        num_heads: H.
        num_kv_heads: heads of keys and values, each shared by as many heads of queries (Ainslie et
            al. 2023, arXiv:2305.13245); None means num_heads.
        head_size: width of a head; None means d_model / H.
        position: `rope` rotates queries and keys by their position (Su et al. 2021,
            arXiv:2104.09864); `none` leaves order to the causal mask. Biases of distance: `alibi`
            (Press et al. 2022, arXiv:2108.12409), `kerple_power` and `kerple_log`, which learn
            them (Chi et al. 2022, arXiv:2205.09921), and `sandwich` (Chi et al. 2023,
            arXiv:2212.10356). `xpos` rotates and lets scores fade (Sun et al. 2022,
            arXiv:2212.10554). `general` learns the matrix that rotates, beginning with RoPE's.
        rope_base: the slowest pair of channels turns by almost 1 / rope_base per token.
        pairs: which channels rotate together.
        scaling: frequencies for texts longer than those of the training.
        rerope: shrink large distances.
        random_positions: draw positions in training.
        bias: whether the projections have biases.
        qk_bias: whether those of queries and keys alone have them.
        window: keys that a query sees, its own among them; None for all.
        sinks: first keys of a document, which stay visible beyond the window.
        scores: `scaled`: q . k / sqrt(D_k). `key_norm`: q . k / |k| (Su 2023,
            kexue.fm/archives/9859). `cosine`: 4 ln(N) cos(q, k), of the same page.
        log_n: multiply scores by ln n / ln N for n visible keys, `always` for models trained with
            it, or `beyond` N alone, for models that were not.
        train_len: N, tokens of a text in training; `cosine` and `log_n` need it.
        weights: `softmax`; `l2`: e^s / sqrt(sum e^(2 s)); `exp`: e^s without a denominator. The
            last two can tell positions of equal tokens apart.
        urpe: learn a factor for each distance up to this, of the weights after the softmax (Luo
            et al. 2022, arXiv:2205.13401).
    """

    formula: ClassVar[str] = "oᵢ = Σ_{j≤i} softmax_j(qᵢ·kⱼ/√d) vⱼ, with q and k rotated by position"
    cost: ClassVar[str] = "O(T d) / O(t d); with a window O(w d) / O(w d)"
    left_out: ClassVar[str] = (
        "bidirectional encoders; block-sparse and compressed attention (Linformer mixes the "
        "future into its projections)"
    )

    num_heads: int
    num_kv_heads: int | None = None
    head_size: int | None = None
    position: Position = "rope"
    rope_base: float = 10_000.0
    pairs: PairLayout = "half"
    scaling: RoPEScaling | None = None
    rerope: ReRoPE | None = None
    random_positions: RandomPositions | None = None
    bias: bool = False
    qk_bias: bool = False
    window: int | None = None
    sinks: int = 0
    scores: Scores = "scaled"
    log_n: LogN = "none"
    train_len: int | None = None
    weights: Weights = "softmax"
    urpe: int | None = None

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_scores()
        self._check_positions()

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def reach(self) -> Reach:
        """How far back queries look."""
        return Reach(self.window, self.sinks)

    @property
    def rereads(self) -> bool:
        """Whether keys are kept without a part that depends on where they are read from."""
        dynamic = self.scaling is not None and self.scaling.kind == "dynamic"
        return dynamic or self.rerope is not None or self.position == "xpos"

    def build(self, d_model: int) -> "Attention":
        """Make the layer for a decoder of width `d_model`."""
        from retnet.mixers.attention.layer import Attention

        return Attention(self, d_model)

    def _check_sizes(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"num_heads ({self.num_heads}) must be at least 1")
        if self.kv_heads < 1 or self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
                f"({self.num_kv_heads}); change one of them"
            )
        if self.head_size is not None and self.head_size < 1:
            raise ValueError(f"head_size ({self.head_size}) must be at least 1; 64 is usual")
        if self.bias and self.qk_bias:
            raise ValueError("bias gives all projections one; leave out one of bias and qk_bias")
        if self.window is not None and self.window < 1:
            raise ValueError(
                f"window ({self.window}) must be at least 1, the query's own key; leave it out for "
                "all keys"
            )
        if self.sinks < 0 or (self.sinks and self.window is None):
            raise ValueError(
                f"sinks ({self.sinks}) stay visible beyond a window, and window is {self.window}; "
                "set both or neither"
            )

    def _check_scores(self) -> None:
        needs = self.scores == "cosine" or self.log_n != "none"
        if needs and (self.train_len is None or self.train_len < 2):
            raise ValueError(
                f'train_len ({self.train_len}) must be at least 2 for scores = "cosine" and for '
                "log_n; give the tokens of a text in training"
            )
        if self.train_len is not None and not needs:
            raise ValueError(
                f'train_len ({self.train_len}) is read by scores = "cosine" and log_n alone; '
                "leave it out"
            )
        if self.urpe is not None and self.urpe < 1:
            raise ValueError(f"urpe ({self.urpe}) must be at least 1, a distance; 128 is usual")

    def _check_positions(self) -> None:
        if not self.rope_base > 1:
            raise ValueError(f"rope_base ({self.rope_base}) must be greater than 1; 10000 is usual")
        for name in ("scaling", "rerope"):
            if getattr(self, name) is not None and self.position != "rope":
                raise ValueError(
                    f'{name} changes the rotation of position = "rope", and position is '
                    f'"{self.position}"; leave one of them out'
                )
        if self.rerope is not None and (self.scaling is not None or self.window is not None):
            raise ValueError(
                "rerope, scaling and a window are rival ways to read longer texts, and rerope "
                "cannot be joined with another; choose one"
            )
        if self.random_positions is None:
            return
        if self.position in ("none", "xpos") or self.rereads:
            raise ValueError(
                f'random_positions do not go with position = "{self.position}", rerope or dynamic '
                'scaling; use "rope" or a bias, or leave them out'
            )
        whole = self.position == "general" or self.urpe is not None
        if whole and self.random_positions.kind == "exponential":
            raise ValueError(
                'position = "general" and urpe need whole positions; use random_positions of kind '
                '"subset"'
            )
