"""What a competitor does in each activity: ours and the peers alike."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn


class Trainee(NamedTuple):
    """Someone who can be trained.

    Attributes:
        by: whose code, with its version.
        model: the parameters.
        loss: of inputs and targets, (B, T) both: mean nats per token, as its users compute it.
    """

    by: str
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]


class Prefiller(NamedTuple):
    """Someone who reads a prompt.

    Attributes:
        by: whose code, with its version.
        dtype: of weights and activations.
        parameters: number of them.
        read: reads tokens (1, T) as the beginning of a text, and gives the logits (V,) of the
            next token; what it keeps of the text is let go with the next call.
        kept_bytes: state or cache of the text read last.
    """

    by: str
    dtype: str
    parameters: int
    read: Callable[[Tensor], Tensor]
    kept_bytes: Callable[[], int]


@runtime_checkable
class Steps(Protocol):
    """Texts that go on, a greedy token of every row at a time.

    Attributes:
        logits: that the last tokens were chosen from.
    """

    logits: Tensor

    def __next__(self) -> Int[Tensor, " B"]:
        """The next token of every row."""
        ...


class Opened(NamedTuple):
    """Texts of one length, ready to go on.

    Attributes:
        steps: gives the tokens.
        kept_bytes: state or cache of all rows, of which each token reads all.
        weight_bytes: of the weights that each token reads.
    """

    steps: Steps
    kept_bytes: int
    weight_bytes: int


class Speaker(NamedTuple):
    """Someone who decodes.

    Attributes:
        by: whose code, with its version.
        dtype: of weights and activations.
        parameters: number of them.
        open: `(context, rows, steps)`: that many texts of `context` tokens, of which at most
            `steps` more will be asked for. Only the last opened is used.
    """

    by: str
    dtype: str
    parameters: int
    open: Callable[[int, int, int], Opened]


class Written(NamedTuple):
    """What someone wrote for some requests.

    Attributes:
        tokens: of each.
        at_s: when each of them came, since the requests did.
    """

    tokens: list[list[int]]
    at_s: list[list[float]]


class Batcher(NamedTuple):
    """Someone who answers many requests at once.

    Attributes:
        by: whose code, with its version.
        dtype: of weights and activations.
        parameters: number of them.
        write: reads prompts that all come at once and writes so many tokens for each, greedily.
    """

    by: str
    dtype: str
    parameters: int
    write: Callable[[Sequence[Sequence[int]], int], Written]


class GreedySteps:
    """Steps of a function from tokens (B,) to logits (B, V): for each one call and one choice."""

    def __init__(self, step: Callable[[Tensor], Tensor], logits: Float[Tensor, "B V"]) -> None:
        self.logits = logits
        self._step = step
        self._chosen = logits.argmax(-1)

    def __next__(self) -> Int[Tensor, " B"]:
        self.logits = self._step(self._chosen)
        self._chosen = self.logits.argmax(-1)
        return self._chosen


def num_parameters(model: nn.Module) -> int:
    """Of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(model: nn.Module) -> int:
    """Of a model whose every weight a token reads, shared ones once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
