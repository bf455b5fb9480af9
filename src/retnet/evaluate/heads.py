"""How long what each head remembers matters, beside how fast it decays.

A text is read to a place; there, one head's part of the state is exchanged for that of another
text, and the rest is read on. How far the predictions then are from what they would have been tells
what the head had kept; how this fades with the tokens read since is its effective memory.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from retnet.data import TokenStream
from retnet.evaluate.losses import LOGITS
from retnet.evaluate.probes.in_text import passages
from retnet.evaluate.text import Progress
from retnet.mixers.branch import Fades
from retnet.model import Decoder, DecoderState
from retnet.model.state import state_tensors, with_tensors

FADED = 0.1
"""Share of its largest influence below which a head's memory counts as gone."""


@dataclass(frozen=True, kw_only=True)
class HeadMemory:
    """What one head keeps.

    Attributes:
        layer: from 0.
        branch: of that layer, from 0.
        head: from 0; None where the branch does not say what its heads are: the whole of it.
        decay: per token; None if it has none of its own.
        influence: mean Kullback-Leibler divergence in nats of the predictions, by the tokens read
            since: 1, 2 to 3, 4 to 7, ...
        reach: tokens since after which the influence stays below a tenth of its largest; None: it
            does not within what was read.
    """

    layer: int
    branch: int
    head: int | None
    decay: float | None
    influence: tuple[float, ...]
    reach: int | None

    @property
    def decay_tokens(self) -> float | None:
        """1 / (1 - decay): tokens after which a token's weight is down to about 1/e."""
        if self.decay is None:
            return None
        return math.inf if self.decay >= 1 else 1 / (1 - self.decay)


@torch.inference_mode()
def score_heads(
    model: Decoder,
    stream: TokenStream,
    *,
    before: int = 512,
    after: int = 512,
    most_samples: int = 8,
    progress: Progress | None = None,
) -> list[HeadMemory]:
    """Measure the effective memory of every head, or of every branch with a state.

    Args:
        model: in evaluation mode.
        stream: documents with passages of `before + after` tokens.
        before: tokens read before the exchange.
        after: tokens read since.
        most_samples: passages; each gets the memory of the one before it.
        progress: called with heads done and in all.

    Raises:
        ValueError: before or after is not positive, or the text has fewer than two passages.
    """
    if before < 1 or after < 1:
        raise ValueError(f"before ({before}) and after ({after}) must be at least 1; raise them")
    device = next(model.parameters()).device
    rows = passages(stream, before + after, most_samples).to(device)
    bos = torch.full_like(rows[:, :1], stream.bos_id)
    _, state = model.hidden(torch.cat([bos, rows[:, :before]], 1))
    rest = rows[:, before:]
    intact, _ = model.hidden(rest, state)
    parts = _parts(model, state)
    found = []
    for number, part in enumerate(parts):
        if progress is not None:
            progress(number, len(parts))
        hidden, _ = model.hidden(rest, _exchanged(state, part))
        influence = _by_distance(_divergence(model, intact, hidden))
        found.append(
            HeadMemory(
                layer=part.layer,
                branch=part.branch,
                head=part.head,
                decay=part.decay,
                influence=influence,
                reach=_reach(influence),
            )
        )
    if progress is not None:
        progress(len(parts), len(parts))
    return found


class Remembered(NamedTuple):
    """A part of a state: of a head, in these fields, or all of a branch's."""

    layer: int
    branch: int
    head: int | None
    decay: float | None
    fields: tuple[str, ...]


def _parts(model: Decoder, state: DecoderState) -> list[Remembered]:
    """All that remembers, but for what a token shift keeps beside heads: it is gone in a token."""
    found = []
    for layer, (module, states) in enumerate(zip(model.layers, state.layers, strict=True)):
        for branch, own in enumerate(states):
            if own is None:
                continue
            mixer = module.branches[branch]  # type: ignore[index]
            if isinstance(mixer, Fades):
                decays = enumerate(map(math.exp, mixer.log_decays))
                found += [
                    Remembered(layer, branch, head, decay, mixer.of_heads) for head, decay in decays
                ]
            else:
                found.append(Remembered(layer, branch, None, None, type(own)._fields))
    return found


def _exchanged(state: DecoderState, part: Remembered) -> DecoderState:
    """The state, with this part of each row taken from the row before."""
    tensors = state_tensors(state)
    for field in part.fields:
        name = f"layers.{part.layer}.{part.branch}.{field}"
        own = tensors[name]
        if part.head is None:
            tensors[name] = own.roll(1, 0)
        else:
            tensors[name] = own.clone()
            tensors[name][:, part.head] = own[:, part.head].roll(1, 0)
    return with_tensors(state, tensors)


def _divergence(
    model: Decoder, intact: Float[Tensor, "B T D"], changed: Float[Tensor, "B T D"]
) -> Float[Tensor, " T"]:
    """Of the predictions, the mean over rows at each place."""
    size = max(1, LOGITS // (len(intact) * model.config.vocab_size))
    parts = []
    for a, b in zip(intact.split(size, dim=1), changed.split(size, dim=1), strict=True):
        p, q = (model.head(x).float().log_softmax(-1) for x in (a, b))
        parts.append((p.exp() * (p - q)).sum(-1).mean(0))
    return torch.cat(parts).cpu()


def _by_distance(values: Float[Tensor, " T"]) -> tuple[float, ...]:
    """Means over 1, 2 to 3, 4 to 7, ... tokens since."""
    means, begin = [], 1
    while begin <= len(values):
        means.append(values[begin - 1 : 2 * begin - 1].mean().item())
        begin *= 2
    return tuple(means)


def _reach(influence: tuple[float, ...]) -> int | None:
    """Tokens since after which the influence stays below a tenth of its largest."""
    strong = [step for step, mean in enumerate(influence) if mean >= FADED * max(influence)]
    return 2 ** (strong[-1] + 1) if strong[-1] + 1 < len(influence) else None
