"""Score text: the negative log-likelihood that training, evaluation and reports all use."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from retnet.model.decoder import Decoder
from retnet.model.state import DecoderState
from retnet.ops import SequenceRanks
from retnet.ops.cross_entropy import IGNORED, linear_cross_entropy


@runtime_checkable
class TokenModel(Protocol):
    """What reads whole rows of token ids: a `Decoder`, or a model of another layout."""

    lm_head: nn.Linear

    def hidden(self, tokens: Int[Tensor, "B T"]) -> tuple[Float[Tensor, "B T D"], Any]:
        """Vectors that the head makes predictions of, and the state after the last."""
        ...

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits of hidden vectors."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of every module."""
        ...


def example_nats(
    model: TokenModel, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Negative log-likelihood of `targets` at the places of whole rows; -100 does not count."""
    h, _ = model.hidden(tokens)
    return linear_cross_entropy(h.flatten(0, 1), model.lm_head.weight, targets.flatten())


class Score(NamedTuple):
    """Sum over the targets that count.

    Attributes:
        nats: negative log-likelihood.
        num_tokens: targets counted.
        state: after the last token.
    """

    nats: Float[Tensor, ""]
    num_tokens: Int[Tensor, ""]
    state: DecoderState


def score(
    model: Decoder,
    inputs: Int[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
    *,
    state: DecoderState | None = None,
    starts: Bool[Tensor, "B T"] | None = None,
    sequence: SequenceRanks | None = None,
) -> Score:
    """Negative log-likelihood of `targets`, float32; target -100 does not count.

    With `sequence`, tokens and targets are this rank's slice of longer rows, and so are the sums
    and the gradients that follow from them: the rows' are the sums over the ranks. The states are
    those before and after the whole rows.
    """
    h, after = model.hidden(inputs, state, starts=starts, sequence=sequence)
    nats = linear_cross_entropy(h.flatten(0, 1), model.lm_head.weight, targets.flatten())
    return Score(nats, (targets != IGNORED).sum(), after)


@torch.inference_mode()
def total_nats(
    model: Decoder,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    carry_state: bool,
) -> tuple[float, int]:
    """Negative log-likelihood of (inputs, targets, starts) batches, and the targets counted.

    Args:
        model: scored in evaluation mode; its mode is restored.
        batches: of equal row count if the state is carried.
        carry_state: each batch continues the last one, so that a text of any length is scored
            with all that came before; False: each starts afresh.
    """
    training = model.training
    model.eval()
    nats, count = 0.0, 0
    state: DecoderState | None = None
    try:
        for inputs, targets, starts in batches:
            got = score(model, inputs, targets, state=state, starts=starts)
            nats, count = nats + got.nats.double().item(), count + int(got.num_tokens)
            state = got.state if carry_state else None
    finally:
        model.train(training)
    return nats, count
