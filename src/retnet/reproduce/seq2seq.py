"""Models that read an input in other ways than a decoder does: prefix-LM and encoder-decoder.

They stand beside `retnet.model.Decoder`, whose branches are causal and may be cut anywhere: tokens
that are read both ways can be neither.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from retnet.mixers import GLUConfig
from retnet.model.norm import RMSNorm
from retnet.ops import Layout

Sight = Literal["causal", "both", "mixed"]
"""How an input's tokens see each other: those before, all, or half of the heads those after."""

SHORTEST_STD = 0.02
"""Deviation of new positions: small beside the letters', which must be told apart first."""


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """A Transformer over an input of fixed length and the output that follows it.

    Attributes:
        vocab_size: V.
        prefix: tokens of the input.
        max_tokens: of input and output together.
        sight: how the input's tokens see each other; the output's see all that came before.
        shared: whether input and output are read by the same weights. If not, an encoder reads the
            input, and a decoder of as many layers, each with attention over the encoder's output,
            reads what follows: about twice the parameters, and hardly more work.
        d_model: D.
        num_layers: of the one stack, or of each.
        num_heads: H, of width D / H.
        width: of the GLU after each attention.

    Source:
        Dong et al. 2019, arXiv:1905.03197 (one stack, input read both ways); Raffel et al. 2019,
        arXiv:1910.10683 (encoder-decoder); Su 2023, kexue.fm/archives/9529 and 9547 (the question
        which of them is better for its parameters, or for its sight).
    """

    vocab_size: int
    prefix: int
    max_tokens: int
    sight: Sight = "causal"
    shared: bool = True
    d_model: int = 64
    num_layers: int = 2
    num_heads: int = 4
    width: int = 192

    def __post_init__(self) -> None:
        if not 0 < self.prefix < self.max_tokens:
            raise ValueError(
                f"prefix ({self.prefix}) must be at least 1 and below max_tokens "
                f"({self.max_tokens}); an input comes before an output"
            )
        if self.num_heads < 1 or self.d_model % self.num_heads:
            raise ValueError(
                f"d_model ({self.d_model}) must be a multiple of num_heads ({self.num_heads})"
            )
        if self.sight == "mixed" and self.num_heads % 2:
            raise ValueError(
                f'num_heads ({self.num_heads}) must be even for sight = "mixed": half of them look '
                "back, half ahead"
            )


class Keys(NamedTuple):
    """Keys and values of one attention for the tokens read so far."""

    k: Float[Tensor, "B H T D_k"]
    v: Float[Tensor, "B H T D_k"]


class Seq2SeqState(NamedTuple):
    """After an input and perhaps a part of the output.

    Attributes:
        seen: tokens read.
        layers: keys of each layer that reads the output.
        source: keys of the encoder's output for each layer; none where weights are shared.
    """

    seen: int
    layers: tuple[Keys, ...]
    source: tuple[Keys, ...]


class Seq2SeqModel(nn.Module):
    """Reads an input in one piece, and then an output token by token or at once.

    Example:
        >>> config = Seq2SeqConfig(vocab_size=9, prefix=3, max_tokens=6, sight="both")
        >>> model = Seq2SeqModel(config)
        >>> h, state = model.hidden(torch.tensor([[1, 2, 3]]))
        >>> h, state = model.hidden(torch.tensor([[4]]), state)
        >>> model.head(h).shape, state.seen
        (torch.Size([1, 1, 9]), 4)
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        D, V = config.d_model, config.vocab_size
        self.embed_tokens = nn.Embedding(V, D)
        self.embed_positions = nn.Embedding(config.max_tokens, D)
        self.encoder = None if config.shared else _Stack(config, reads_source=False)
        self.layers = _Stack(config, reads_source=not config.shared)
        self.lm_head = nn.Linear(D, V, bias=False)
        nn.init.normal_(self.embed_tokens.weight, std=D**-0.5)
        nn.init.normal_(self.embed_positions.weight, std=SHORTEST_STD)

    def hidden(
        self, tokens: Int[Tensor, "B T"], state: Seq2SeqState | None = None
    ) -> tuple[Float[Tensor, "B T D"], Seq2SeqState]:
        """Vectors that `head` makes predictions of, and what the next tokens need to know.

        Args:
            tokens: the whole input, and as much of the output as there is; or more of the output.
            state: what came before; None at the beginning. It is not modified.

        Raises:
            ValueError: the input is not whole, or there are more than `max_tokens` tokens.
        """
        config = self.config
        self._check(tokens, state)
        seen = 0 if state is None else state.seen
        places = torch.arange(seen, seen + tokens.shape[1], device=tokens.device)
        x = self.embed_tokens(tokens) + self.embed_positions(places)
        if state is not None:
            known = state.layers[0].k.shape[2]
            mask = causal(len(places), known, x.device)
            h, layers = self.layers(x, mask, state.layers, state.source)
            return h, Seq2SeqState(seen + len(places), layers, state.source)
        if self.encoder is None:
            mask = sight_mask(config.sight, config.num_heads, config.prefix, len(places), x.device)
            h, layers = self.layers(x, mask)
            return h, Seq2SeqState(len(places), layers, ())
        x, rest = x[:, : config.prefix], x[:, config.prefix :]
        mask = sight_mask(config.sight, config.num_heads, config.prefix, config.prefix, x.device)
        read, _ = self.encoder(x, mask)
        source = self.layers.keys_of(read)
        h, layers = self.layers(rest, causal(rest.shape[1], 0, x.device), source=source)
        return torch.cat([read, h], 1), Seq2SeqState(len(places), layers, source)

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits of hidden vectors."""
        return self.lm_head(h)

    def input_weights(
        self, tokens: Int[Tensor, "B prefix"]
    ) -> list[Float[Tensor, "B H prefix prefix"]]:
        """How the input's tokens weigh each other in each layer that reads them."""
        config = self.config
        self._check(tokens, None)
        stack = self.layers if self.encoder is None else self.encoder
        mask = sight_mask(config.sight, config.num_heads, config.prefix, config.prefix)
        x = self.embed_tokens(tokens[:, : config.prefix])
        x = x + self.embed_positions.weight[: config.prefix]
        found: list[Tensor] = []
        stack(x, mask.to(x.device), watch=found)
        return found

    def num_parameters(self, embeddings: bool = True) -> int:
        """Number of parameters; without embeddings and head if asked."""
        outer = (self.embed_tokens, self.embed_positions, self.lm_head)
        skip = set() if embeddings else {module.weight for module in outer}
        return sum(p.numel() for p in self.parameters() if p not in skip)

    def _check(self, tokens: Tensor, state: Seq2SeqState | None) -> None:
        config, seen = self.config, 0 if state is None else state.seen
        if state is None and tokens.shape[1] < config.prefix:
            raise ValueError(
                f"the input of {config.prefix} tokens has to be read in one piece, because its "
                f"tokens may see those after them, and {tokens.shape[1]} were given; give all"
            )
        if seen + tokens.shape[1] > config.max_tokens:
            raise ValueError(
                f"{seen} + {tokens.shape[1]} tokens are more than max_tokens "
                f"({config.max_tokens}); raise it and train again, for it has no later positions"
            )


class _Stack(nn.Module):
    """Layers and the norm after them."""

    def __init__(self, config: Seq2SeqConfig, reads_source: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(config, reads_source) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, 1e-6)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        past: tuple[Keys, ...] | None = None,
        source: tuple[Keys, ...] = (),
        watch: list[Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Keys, ...]]:
        keys = []
        for index, block in enumerate(self.blocks):
            before = None if past is None else past[index]
            x, mine = block(x, mask, before, source[index] if source else None, watch)
            keys.append(mine)
        return self.norm(x), tuple(keys)

    def keys_of(self, source: Tensor) -> tuple[Keys, ...]:
        """What each layer's attention over an encoder's output looks up."""
        return tuple(cast(Any, block).cross.keys(source) for block in self.blocks)


class _Block(nn.Module):
    """Attention, perhaps attention over an encoder's output, and a GLU, each behind a norm."""

    def __init__(self, config: Seq2SeqConfig, reads_source: bool) -> None:
        super().__init__()
        D = config.d_model
        self.norm, self.mixer = RMSNorm(D, 1e-6), _Attention(config)
        self.cross_norm = RMSNorm(D, 1e-6) if reads_source else None
        self.cross = _Attention(config) if reads_source else None
        self.channel_norm = RMSNorm(D, 1e-6)
        self.channel = GLUConfig(width=config.width).build(D)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        past: Keys | None,
        source: Keys | None,
        watch: list[Tensor] | None,
    ) -> tuple[Tensor, Keys]:
        inner = self.norm(x)
        keys = self.mixer.keys(inner)
        if past is not None:
            keys = Keys(*(torch.cat(pair, 2) for pair in zip(past, keys, strict=True)))
        x = x + self.mixer(inner, keys, mask, watch)
        if self.cross is not None and self.cross_norm is not None:
            assert source is not None
            x = x + self.cross(self.cross_norm(x), source)
        inner = self.channel_norm(x)
        y, _ = self.channel(inner, None, Layout.of(*x.shape[:2], device=x.device))
        return x + y, keys


class _Attention(nn.Module):
    """Softmax attention in plain steps, so that its weights can be looked at."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        D = config.d_model
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(D, D, bias=False) for _ in range(4)
        )

    def keys(self, x: Float[Tensor, "B T D"]) -> Keys:
        return Keys(self._heads(self.k_proj(x)), self._heads(self.v_proj(x)))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        keys: Keys,
        mask: Tensor | None = None,
        watch: list[Tensor] | None = None,
    ) -> Float[Tensor, "B T D"]:
        q = self._heads(self.q_proj(x)) / math.sqrt(keys.k.shape[-1])
        scores = q @ keys.k.mT
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1)
        if watch is not None:
            watch.append(weights)
        return self.o_proj((weights @ keys.v).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def causal(
    tokens: int, before: int = 0, device: torch.device | None = None
) -> Bool[Tensor, "T keys"]:
    """Whether each token sees each key: the `before` ones of the past, and those up to itself."""
    keys = torch.arange(before + tokens, device=device)
    return keys <= keys[before:, None]


def sight_mask(
    sight: Sight, num_heads: int, prefix: int, tokens: int, device: torch.device | None = None
) -> Bool[Tensor, "H T T"]:
    """Whether each token sees each other one, head by head.

    Args:
        sight: of the first `prefix` tokens; all later ones see what came before them.
        num_heads: H.
        prefix: tokens of the input.
        tokens: T.
        device: where the mask is wanted.
    """
    mask = causal(tokens, device=device).repeat(num_heads, 1, 1)
    inner = mask[:, :prefix, :prefix]
    if sight == "both":
        inner.fill_(True)
    elif sight == "mixed":
        inner[num_heads // 2 :] = inner[0].mT.clone()
    return mask
