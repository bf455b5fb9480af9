"""The one decoder: embedding, residual branches, norm, head."""

import math
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from retnet.mixers import Branch, BranchConfig, Depth
from retnet.mixers.projection import JointLinear, is_watched
from retnet.model.config import DecoderConfig
from retnet.model.norm import RMSNorm
from retnet.model.state import DecoderState
from retnet.ops import Layout, SequenceRanks
from retnet.types import FormChoice

if TYPE_CHECKING:
    from retnet.model.compiled_steps import CompiledSteps


class Decoder(nn.Module):
    """A language model of residual branches; it knows no mixer by name.

    Attributes:
        config: what it was made from.
        gradient_checkpointing: keep only each layer's input in training and compute the layer anew
            in the backward pass (Chen et al. 2016, arXiv:1604.06174): the memory of one layer's
            activations instead of all, for a third more work.
        compiled_steps: a program for single tokens, which `pack` writes; None for none.

    Example:
        >>> from retnet.model import preset
        >>> model = Decoder(preset("small-4m", vocab_size=300))
        >>> logits, state = model(torch.tensor([[1, 2, 3]]))
        >>> logits, state = model(torch.tensor([[4]]), state)  # goes on where it stopped
        >>> logits.shape, int(state.position)
        (torch.Size([1, 1, 300]), 4)
    """

    compiled_steps: "CompiledSteps | None" = None

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError(
                f"vocab_size ({config.vocab_size}) must be at least 1; take the tokenizer's"
            )
        self.config = config
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_norm = _norm(config) if config.embed_norm else nn.Identity()
        self.layers = nn.ModuleList(
            Layer(config, branches, index) for index, branches in enumerate(config.branches)
        )
        self.norm = _norm(config) if config.residual == "pre" else nn.Identity()
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.outward = JointLinear("lm_head")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        draw_embeddings(self.embed_tokens.weight, self.config)
        if not self.config.tie_embeddings:
            draw_head(self.lm_head.weight, self.config)
        gain = branch_gain(self.config)
        for index, layer in enumerate(self.layers):
            depth = Depth(index, self.config.num_layers)
            for branch in cast(Layer, layer).branches:
                cast(Branch, branch).reset_parameters(gain, depth)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        state: DecoderState | None = None,
        *,
        valid: Bool[Tensor, "B T"] | None = None,
        starts: Bool[Tensor, "B T"] | None = None,
        form: FormChoice = "auto",
        sequence: SequenceRanks | None = None,
    ) -> tuple[Float[Tensor, "B T V"], DecoderState]:
        """Logits of the next token at every place, and the state after the last.

        Args:
            tokens: token ids.
            state: what came before; None at the start of a sequence. It is not modified.
            valid: False at padding, anywhere: a padded token changes nothing.
            starts: True at the first token of a document, before which the state is reset.
            form: how the mixers compute; it changes cost, not numbers.
            sequence: the ranks that longer rows are spread over, all of which must call; tokens and
                masks are then this rank's slice of them, and the states those before and after
                the whole rows, equal on all ranks. None where a process has whole rows.

        Raises:
            ValueError: tokens and state do not fit each other, or a mixer cannot span ranks.
        """
        compiled = self.compiled_steps
        if compiled is not None and state is not None and compiled.steps(state):
            assert tokens.shape[1] == 1
            assert valid is None
            assert starts is None
            logits, state = compiled.step(tokens[:, 0], state)
            return logits[:, None], state
        h, state = self.hidden(
            tokens, state, valid=valid, starts=starts, form=form, sequence=sequence
        )
        return self.head(h), state

    def hidden(
        self,
        tokens: Int[Tensor, "B T"],
        state: DecoderState | None = None,
        *,
        valid: Bool[Tensor, "B T"] | None = None,
        starts: Bool[Tensor, "B T"] | None = None,
        form: FormChoice = "auto",
        sequence: SequenceRanks | None = None,
    ) -> tuple[Float[Tensor, "B T D"], DecoderState]:
        """`forward` without the head, for callers that need logits at few places."""
        layout = _layout_of(tokens, state, valid, starts, sequence)
        return run_body(self, self.config, self.embed_tokens(tokens), state, layout, form)

    def hidden_by_layers(
        self,
        tokens: Int[Tensor, "B T"],
        state: DecoderState | None = None,
        *,
        valid: Bool[Tensor, "B T"] | None = None,
    ) -> Generator[None, None, tuple[Float[Tensor, "B T D"], DecoderState]]:
        """`hidden`, stopping after each layer: for callers with something urgent in between.

        What the generator returns is what `hidden` does. The model is in evaluation mode.
        """
        assert not self.training
        layout = _layout_of(tokens, state, valid)
        x = _entering(self, self.config, self.embed_tokens(tokens))
        after = []
        for index, layer in enumerate(self.layers):
            x, new = layer(x, None if state is None else state.layers[index], layout, "auto")
            after.append(new)
            yield
        return self.norm(x), DecoderState(layout.next_position, tuple(after))

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits of hidden vectors."""
        return self.outward(self, h)[0]

    @property
    def max_tokens(self) -> int | None:
        """Tokens of the longest document that it can read; None where there is no limit."""
        branches = (b for layer in self.layers for b in cast(Layer, layer).branches)
        limits = (getattr(branch, "max_tokens", None) for branch in branches)
        return min((limit for limit in limits if limit is not None), default=None)

    def num_parameters(self, embeddings: bool = True) -> int:
        """Number of parameters, a tied head counted once; without embeddings and head if asked."""
        skip = set() if embeddings else {self.embed_tokens.weight, self.lm_head.weight}
        return sum(p.numel() for p in self.parameters() if p not in skip)


def run_body(
    body: Any,
    config: DecoderConfig,
    x: Float[Tensor, "B T D"],
    state: DecoderState | None,
    layout: Layout,
    form: FormChoice = "auto",
) -> tuple[Float[Tensor, "B T D"], DecoderState]:
    """Hidden vectors of embedded tokens, and the state after them.

    A function, so that a model class of another library can hold the same modules.

    Args:
        body: a `Decoder`, or a module with `embed_norm`, `layers`, `norm` and
            `gradient_checkpointing` as a `Decoder` has them.
        config: what these were made from.
        x: embeddings of the tokens.
        state: what came before; None at the start of a sequence. It is not modified.
        layout: where each token stands.
        form: how the mixers compute.
    """
    x = _entering(body, config, x)
    if body.training:
        x = F.dropout(x, config.dropout, body.training)
    recompute = body.gradient_checkpointing and body.training and torch.is_grad_enabled()
    after = []
    for index, layer in enumerate(body.layers):
        before = None if state is None else state.layers[index]
        if recompute:
            x, new = checkpoint(layer, x, before, layout, form, use_reentrant=False)
        else:
            x, new = layer(x, before, layout, form)
        after.append(new)
    return body.norm(x), DecoderState(layout.next_position, tuple(after))


def _entering(body: Any, config: DecoderConfig, x: Tensor) -> Tensor:
    """What the first layer reads of embeddings."""
    return body.embed_norm(x * math.sqrt(config.d_model) if config.embed_scale else x)


class Layer(nn.Module):
    """The residual branches of one layer."""

    def __init__(
        self, config: DecoderConfig, branches: tuple[BranchConfig, ...], index: int
    ) -> None:
        super().__init__()
        self.post_norm = config.residual != "pre"
        self.alpha = (2 * config.num_layers) ** 0.25 if config.residual == "deepnorm" else 1.0
        self.dropout = config.dropout
        self.drop_path = config.drop_path * index / max(config.num_layers - 1, 1)
        self.norms = nn.ModuleList(_norm(config) for _ in branches)
        self.branches = nn.ModuleList(branch.build(config.d_model) for branch in branches)

    def forward(
        self, x: Tensor, states: tuple | None, layout: Layout, form: FormChoice
    ) -> tuple[Tensor, tuple]:
        """Add each branch's output to the residual stream."""
        after = []
        pending: Tensor | None = None  # what the last branch gave, still to be added
        for i, (norm, branch) in enumerate(zip(self.norms, self.branches, strict=True)):
            state = None if states is None else states[i]
            x, inner = (x, x) if self.post_norm else _add_norm(norm, x, pending)
            y, new = branch(_compute_dtype(inner), state, layout, form)
            if layout.spread is not None and new is not None:
                _check_spans_ranks(branch)
            if self.training:
                y = self._drop_path(F.dropout(y, self.dropout, self.training))
            if self.post_norm:
                x = norm(self.alpha * x + y)
            else:
                pending = y
            after.append(new)
        return x if pending is None else _add(x, pending), tuple(after)

    def _drop_path(self, y: Tensor) -> Tensor:
        """Skip the branch for a random part of the rows, and enlarge it for the rest."""
        if self.drop_path == 0:
            return y
        keep = torch.rand(len(y), 1, 1, device=y.device) >= self.drop_path
        return y * (keep / (1 - self.drop_path)).to(y.dtype)


def draw_embeddings(weight: Tensor, config: DecoderConfig) -> None:
    """Draw new embeddings in place."""
    if config.init == "rwkv":
        nn.init.uniform_(weight, -1e-4, 1e-4)
    else:
        nn.init.normal_(weight, std=_head_std(config))


def draw_head(weight: Tensor, config: DecoderConfig) -> None:
    """Draw a new head that is not tied, in place."""
    if config.init == "rwkv":
        nn.init.orthogonal_(weight, 0.5 * max(len(weight) / config.d_model, 1) ** 0.5)
    else:
        nn.init.normal_(weight, std=_head_std(config))


def _head_std(config: DecoderConfig) -> float:
    """Standard deviation of new embeddings and of a new head.

    An untied head is N(0, 1/D): its logits have variance 1 and the first loss is ln(V) + 1/2. A
    tied one must be smaller, N(0, 1/D^2): the residual stream still points along the token just
    read, whose own logit would be sqrt(D) with the former.
    """
    return 1 / config.d_model if config.tie_embeddings else config.d_model**-0.5


def branch_gain(config: DecoderConfig) -> float:
    """Factor of the weights that set the size of a branch's output."""
    if config.residual == "deepnorm":
        return (8 * config.num_layers) ** -0.25
    return math.sqrt(math.log(2 * config.num_layers)) if config.init == "subln" else 1.0


def _norm(config: DecoderConfig) -> nn.Module:
    if config.norm == "rms":
        return RMSNorm(config.d_model, config.norm_eps, config.norm_weight)
    return nn.LayerNorm(config.d_model, config.norm_eps, config.norm_weight, config.norm_bias)


def _add_norm(norm: nn.Module, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """The residual stream x + y, and what the next branch reads of it."""
    if isinstance(norm, RMSNorm) and not is_watched(norm):
        return norm.after(x, y, _autocast_dtype(x))
    x = x if y is None else _add(x, y)
    return x, norm(x)


def _add(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`; of two dtypes in two quick passes instead of a slow one."""
    return x + y if x.dtype == y.dtype else y.to(x.dtype).add_(x)


def _compute_dtype(x: Tensor) -> Tensor:
    """Cast once to autocast's dtype, or each of a branch's projections would cast again."""
    return x.to(_autocast_dtype(x))


def _autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that linear layers compute in."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _check_spans_ranks(branch: nn.Module) -> None:
    if not getattr(branch, "spans_ranks", False):
        raise ValueError(
            f"{type(branch).__name__} has a state and does not pass it between ranks, so its rows "
            "must not be spread over several (sequence); run them whole (train.sequence_ranks = 1)"
        )


def _layout_of(
    tokens: Tensor,
    state: DecoderState | None,
    valid: Tensor | None = None,
    starts: Tensor | None = None,
    sequence: SequenceRanks | None = None,
) -> Layout:
    _check_tokens(tokens, state)
    B, T = tokens.shape
    if B == 0:  # masks of no rows say nothing
        valid = starts = None
    return Layout.of(
        B,
        T,
        position=None if state is None else state.position,
        valid=valid,
        starts=starts,
        device=tokens.device,
        sequence=sequence,
    )


def _check_tokens(tokens: Tensor, state: DecoderState | None) -> None:
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)}; it must be (B, T) with at least one token"
        )
    if state is not None and len(state.position) != len(tokens):
        raise ValueError(
            f"tokens has {len(tokens)} rows and the state {len(state.position)}; "
            "they must be equal: select_rows picks the state's"
        )
