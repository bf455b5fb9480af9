"""What is measured on a trained model: scores of the evaluate room, with names for the results."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from retnet.evaluate import score_stream
from retnet.model import Decoder
from retnet.reproduce.cell import Metrics, Place
from retnet.reproduce.texts import StoredText


@runtime_checkable
class Measure(Protocol):
    """Something to measure on a trained model."""

    @property
    def tokens(self) -> int:
        """To read."""
        ...

    def settings(self) -> dict[str, Any]:
        """All that decides the result, as JSON."""
        ...

    def __call__(self, model: Decoder, place: Place) -> Metrics:
        """Measure."""
        ...


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """The loss of a text in windows that start with nothing, as in training.

    Attributes:
        text: to read.
        seq_len: tokens of a window.
    """

    text: StoredText
    seq_len: int

    @property
    def tokens(self) -> int:
        """To read."""
        return self.text.num_tokens

    def settings(self) -> dict[str, Any]:
        """All that decides the result, as JSON."""
        return {"measure": "loss", "seq_len": self.seq_len, **self.text.settings()}

    def __call__(self, model: Decoder, place: Place) -> Metrics:
        """`loss NAME`, nats per token, and `bits NAME`, bits per byte."""
        score = score_stream(model, self.text.open(place), seq_len=self.seq_len)
        return {
            f"loss {self.text.name}": score.nats / score.num_tokens,
            f"bits {self.text.name}": score.bits_per_byte,
        }
