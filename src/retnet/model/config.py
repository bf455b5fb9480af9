"""The decoder's description: one frozen dataclass, one entry per kind of layer."""

from dataclasses import dataclass, field
from typing import Any, Literal

from retnet.mixers import CHANNEL_MIXERS, MIXERS, BranchConfig


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """A layer: a token mixer, then a channel mixer; either may be missing.

    Attributes:
        mixer: config of a token mixer, from `retnet.MIXERS`.
        channel: config of a channel mixer, from `retnet.CHANNEL_MIXERS`.
        repeat: how many such layers follow one another.
    """

    mixer: BranchConfig | None = field(default=None, metadata={"registry": MIXERS})
    channel: BranchConfig | None = field(default=None, metadata={"registry": CHANNEL_MIXERS})
    repeat: int = 1

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise ValueError(f"repeat ({self.repeat}) must be at least 1; delete the layer instead")
        if self.mixer is None and self.channel is None:
            raise ValueError("a layer has neither mixer nor channel; give it at least one")

    @property
    def branches(self) -> tuple[BranchConfig, ...]:
        """The layer's branches in order."""
        return tuple(b for b in (self.mixer, self.channel) if b is not None)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A stack of residual branches between an embedding and a head.

    Attributes:
        d_model: D, the width of the residual stream.
        layers: from the first to the last.
        vocab_size: V; 0 stands for the tokenizer's, to be filled in before the model is built.
        norm: before each branch, and before the head: RMSNorm or LayerNorm.
        norm_eps: its epsilon.
        norm_weight: whether norms have learned weights.
        norm_bias: whether LayerNorms with weights have learned biases, too.
        residual: `pre`: x + branch(norm(x)). `post`: norm(x + branch(x)), and no norm before the
            head. `deepnorm`: norm(alpha x + branch(x)) likewise, with alpha = (2 L)^(1/4) (Wang et
            al. 2022, arXiv:2203.00555).
        tie_embeddings: use the embedding's weights as the head's.
        embed_scale: multiply embeddings by sqrt(D).
        embed_norm: normalise embeddings.
        dropout: probability, on embeddings and on each branch's output, in training.
        drop_path: probability that a row skips a branch, in training: 0 at the first layer,
            rising linearly to this at the last (Huang et al. 2016, arXiv:1603.09382).
        init: gain of the weights that set a branch's size: `retnet` 1, `subln` sqrt(ln 2L)
            (arXiv:2210.06423); with the deepnorm residual it is (8 L)^(-1/4) whatever this says.
            `rwkv` 1, with tiny embeddings, which need `embed_norm`, and an orthogonal head
            (arXiv:2305.13048).
    """

    d_model: int
    layers: tuple[LayerConfig, ...]
    vocab_size: int = 0
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_weight: bool = True
    norm_bias: bool = True
    residual: Literal["pre", "post", "deepnorm"] = "pre"
    tie_embeddings: bool = False
    embed_scale: bool = False
    embed_norm: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    init: Literal["retnet", "subln", "rwkv"] = "retnet"

    def __post_init__(self) -> None:
        for name in ("d_model", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.vocab_size < 0:
            raise ValueError(f"vocab_size ({self.vocab_size}) must not be negative")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} ({getattr(self, name)}) is a probability and must be in [0, 1)"
                )

        if self.init == "rwkv" and (self.tie_embeddings or not self.embed_norm):
            raise ValueError(
                f"init (rwkv) draws tiny embeddings and a head of its own, so embed_norm "
                f"({self.embed_norm}) must be true and tie_embeddings ({self.tie_embeddings}) "
                "false; change these or take another init"
            )

    @property
    def num_layers(self) -> int:
        """L, repeats counted."""
        return sum(layer.repeat for layer in self.layers)

    @property
    def branches(self) -> tuple[tuple[BranchConfig, ...], ...]:
        """Branch configs of each of the L layers."""
        return tuple(layer.branches for layer in self.layers for _ in range(layer.repeat))


def branch_name(config: Any) -> str:
    """The registry's name of a branch config."""
    for registry in (MIXERS, CHANNEL_MIXERS):
        for name, cls in registry.items():
            if type(config) is cls:
                return name
    raise ValueError(f"{type(config).__name__} is in no registry; add a line to retnet.mixers")
