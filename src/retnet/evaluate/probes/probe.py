"""What a probe is: examples made at will, of which a model has to get some places right."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retnet.model.scoring import TokenModel
from retnet.ops.cross_entropy import IGNORED


class Examples(NamedTuple):
    """A batch of examples.

    Attributes:
        tokens: what the model reads.
        targets: what its output at the same place must be, not at the one before; -100 where
            nothing is asked.
    """

    tokens: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]

    @property
    def mask(self) -> Bool[Tensor, "B T"]:
        """Where something is asked."""
        return self.targets != IGNORED


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A task with one right answer at each place that is asked for.

    Attributes:
        name: among the probes.
        about: what has to be done, in a line.
        source: where it is defined.
        vocab_size: tokens and targets are below it.
        make: (batch, length, generator) -> examples of that many rows and tokens; `generator` is
            one of the CPU, and all that chance decides.
        shortest: the least length that there are examples of.
        train_length: a length to train small models on.
        test_lengths: lengths to test them on, rising.
        chance: accuracy of who knows the possible answers and guesses.
    """

    name: str
    about: str
    source: str
    vocab_size: int
    make: Callable[[int, int, torch.Generator], Examples]
    shortest: int
    train_length: int
    test_lengths: tuple[int, ...]
    chance: float


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """How many answers were right.

    Attributes:
        right: places.
        asked: places.
        rows_right: rows with no wrong place.
        rows: that ask something.
        row_variance: variance over the rows of a row's share of right places.
    """

    right: int
    asked: int
    rows_right: int
    rows: int
    row_variance: float

    @property
    def accuracy(self) -> float:
        """Share of right places."""
        return self.right / self.asked

    @property
    def exact(self) -> float:
        """Share of rows that are right throughout."""
        return self.rows_right / self.rows

    @property
    def standard_error(self) -> float:
        """Of `accuracy`; the places of a row are not independent, so the rows are counted."""
        return math.sqrt(self.row_variance / self.rows)


def score_answers(answers: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]) -> ProbeScore:
    """Compare a model's answers at every place with the targets that count.

    Raises:
        ValueError: nothing is asked.

    Example:
        >>> answers, targets = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[-100, 2], [3, 5]])
        >>> score = score_answers(answers, targets)
        >>> score.accuracy, score.exact
        (0.6666666666666666, 0.5)
    """
    mask = targets != IGNORED
    if not mask.any():
        raise ValueError("all targets are -100, so nothing is asked; give examples with an answer")
    asked = mask.sum(1)
    right = ((answers == targets) & mask).sum(1)
    right, asked = right[asked > 0], asked[asked > 0]
    shares = right.double() / asked
    return ProbeScore(
        right=int(right.sum()),
        asked=int(asked.sum()),
        rows_right=int((right == asked).sum()),
        rows=len(asked),
        row_variance=shares.var(correction=0).item(),
    )


@torch.inference_mode()
def answers_of(
    model: TokenModel, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Int[Tensor, "B T"]:
    """The likeliest output of a model where `mask` asks for one, elsewhere -1.

    The head sees no other places: a vocabulary is large, and most places ask nothing.
    """
    device = next(model.parameters()).device
    hidden, _ = model.hidden(tokens.to(device))
    answers = torch.full_like(tokens, -1)
    answers[mask] = model.head(hidden[mask.to(device)]).argmax(-1).cpu()
    return answers


def score_probe(
    model: TokenModel,
    probe: Probe,
    *,
    length: int,
    batch_size: int = 32,
    batches: int = 8,
    seed: int = 1,
) -> ProbeScore:
    """Score a model on new examples.

    Args:
        model: its mode is left alone; `model.eval()` turns its dropout off.
        probe: the task.
        length: tokens of an example.
        batch_size: rows at a time.
        batches: how many.
        seed: of the examples.

    Raises:
        ValueError: the model's vocabulary is smaller than the probe's, or an argument is too small.
    """
    check_vocabulary(model, probe)
    if batches < 1 or batch_size < 1:
        raise ValueError(
            f"batches ({batches}) and batch_size ({batch_size}) must be at least 1; raise them"
        )
    generator = torch.Generator().manual_seed(seed)
    answers, targets = [], []
    for _ in range(batches):
        examples = probe.make(batch_size, length, generator)
        answers.append(answers_of(model, examples.tokens, examples.mask))
        targets.append(examples.targets)
    return score_answers(torch.cat(answers), torch.cat(targets))


def check_vocabulary(model: TokenModel, probe: Probe) -> None:
    """Refuse a model that does not have all tokens of a probe.

    Raises:
        ValueError: its vocabulary is smaller.
    """
    size = model.lm_head.out_features
    if size < probe.vocab_size:
        raise ValueError(
            f"the model's vocab_size ({size}) is below that of the probe "
            f"{probe.name} ({probe.vocab_size}); train a model with the probe's"
        )


def check_length(name: str, length: int, shortest: int) -> None:
    """Refuse a length that a probe has no examples of."""
    if length < shortest:
        raise ValueError(
            f"length ({length}) must be at least {shortest} for the probe {name}; raise it"
        )


def draw(
    low: int, high: int, size: tuple[int, ...], generator: torch.Generator
) -> Int[Tensor, "..."]:
    """Uniform whole numbers from `low` to `high - 1`."""
    return torch.randint(low, high, size, generator=generator)


def choose(
    low: int, high: int, size: tuple[int, int], generator: torch.Generator
) -> Int[Tensor, "rows chosen"]:
    """For each row, different whole numbers from `low` to `high - 1`, in random order.

    Raises:
        ValueError: there are too few numbers.
    """
    rows, chosen = size
    if chosen > high - low:
        raise ValueError(
            f"{chosen} different tokens were asked for and there are {high - low}; ask for a "
            "shorter length or give the probe a larger vocab_size"
        )
    return weighted_choice(torch.zeros(high - low), rows, chosen, generator) + low


def weighted_choice(
    log_weights: Float[Tensor, " n"], rows: int, chosen: int, generator: torch.Generator
) -> Int[Tensor, "rows chosen"]:
    """For each row, draws without repeats, each in proportion to the weights of those left.

    The largest of log-weights plus Gumbel noise is such a draw, and the next largest the next
    (Efraimidis and Spirakis 2006, Information Processing Letters 97).
    """
    uniform = torch.rand(rows, len(log_weights), generator=generator, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
    return (log_weights + gumbel).topk(chosen, dim=1).indices


def empty_targets(tokens: Tensor) -> Tensor:
    """Targets of the same shape that ask nothing."""
    return torch.full_like(tokens, IGNORED)
