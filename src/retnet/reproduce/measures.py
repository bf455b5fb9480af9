"""What is measured on a trained model: scores of the evaluate room, with names for the results."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from retnet.evaluate import score_stream
from retnet.evaluate.context import score_contexts
from retnet.model import Decoder
from retnet.reproduce.cell import Metrics, Place
from retnet.reproduce.texts import StoredText

WINDOWS = "by windows"
DOCUMENTS = "by documents"


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


@dataclass(frozen=True, kw_only=True)
class WholeText:
    """All of a text, by windows that overlap by half and by documents from first to last token.

    Attributes:
        text: to read.
        seq_len: tokens of a window.
    """

    text: StoredText
    seq_len: int

    @property
    def tokens(self) -> int:
        """To read: by windows each token twice."""
        return 3 * self.text.num_tokens

    def settings(self) -> dict[str, Any]:
        """All that decides the result, as JSON."""
        words = {"words": self.text.num_words}
        return {"measure": "whole", "seq_len": self.seq_len, **words, **self.text.settings()}

    def __call__(self, model: Decoder, place: Place) -> Metrics:
        """`bits NAME WAY`, bits per byte, and `word NAME WAY`, nats per word, of both ways."""
        stream, found = self.text.open(place), {}
        for way, window in {WINDOWS: self.seq_len, DOCUMENTS: None}.items():
            stride = None if window is None else window // 2
            score = score_stream(model, stream, seq_len=window, stride=stride)
            found[f"bits {self.text.name} {way}"] = score.bits_per_byte
            found[f"word {self.text.name} {way}"] = score.nats / self.text.num_words
        return found


@dataclass(frozen=True, kw_only=True)
class ContextLoss:
    """The loss of the same last tokens of long rows, from more and more context.

    Attributes:
        text: whose documents, some of them longer than the longest context.
        contexts: tokens that are read, rising.
        segment: tokens at the end that are scored.
        most_samples: rows.
    """

    text: StoredText
    contexts: tuple[int, ...]
    segment: int
    most_samples: int

    @property
    def tokens(self) -> int:
        """To read, at most."""
        rows = min(self.most_samples, self.text.num_tokens // self.contexts[-1])
        return rows * sum(self.contexts)

    def settings(self) -> dict[str, Any]:
        """All that decides the result, as JSON."""
        return {
            "measure": "context",
            "contexts": list(self.contexts),
            "segment": self.segment,
            "most_samples": self.most_samples,
            **self.text.settings(),
        }

    def __call__(self, model: Decoder, place: Place) -> Metrics:
        """`loss NAME @ TOKENS`, nats per token, for each length of context."""
        growth = score_contexts(
            model,
            self.text.open(place),
            contexts=self.contexts,
            segment=self.segment,
            most_samples=self.most_samples,
        )
        return {
            context_metric(self.text.name, context): nats
            for context, nats in zip(growth.contexts, growth.nats, strict=True)
        }


def context_metric(text: str, context: int) -> str:
    """The name of the loss at a length of context."""
    return f"loss {text} @ {context}"
