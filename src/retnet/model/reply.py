"""Reply: the text of generated tokens, as far as it may be shown."""

import codecs
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

FinishReason = Literal["stop", "length"]
"""Why a text ended: at a stop string or the end of the document, or at max_tokens."""


@runtime_checkable
class Tokenizer(Protocol):
    """What generation needs of a tokenizer; `retnet.data.Tokenizer` has it."""

    @property
    def bos_id(self) -> int:
        """The token before a document."""
        ...

    @property
    def end_ids(self) -> Sequence[int]:
        """Tokens that end a text: BOS, which stands between documents in training; perhaps EOS."""
        ...

    def encode(self, text: str, /) -> list[int]:
        """Tokens of a text, without BOS."""
        ...

    def id_bytes(self, token: int, /) -> bytes:
        """The bytes that a token stands for, perhaps a part of a character; none for BOS."""
        ...


class Reply:
    """A text that grows token by token: whole characters, and never a part of a stop string.

    The text is the same however it was cut into tokens. It ends before the stop string that is
    complete first (of two that end together, before the longer one). Bytes that are not UTF-8
    become U+FFFD as soon as no further byte can mend them.

    Attributes:
        tokens: those taken, without the one that ended the text.
        num_shown: characters of `text`.
        num_decoded: characters of all tokens; those that are not shown are withheld because a
            stop string may begin there, or has.
        finish_reason: None while the text goes on.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, stop: str | Sequence[str]) -> None:
        """Begin an empty text.

        Raises:
            ValueError: max_tokens is negative, or a stop string is empty.
        """
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if max_tokens < 0:
            raise ValueError(
                f"max_tokens ({max_tokens}) must be 0 or more; 0 only reads the prompt"
            )
        if "" in stop:
            raise ValueError(
                f"stop {stop} has an empty string, which ends every text; leave it out"
            )
        self.tokens: list[int] = []
        self.num_shown = 0
        self.num_decoded = 0
        self.finish_reason: FinishReason | None = None if max_tokens else "length"
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pieces: list[str] = []
        self._withheld = ""

    @property
    def text(self) -> str:
        """What may be shown."""
        return "".join(self._pieces)

    @property
    def at_boundary(self) -> bool:
        """Whether the tokens so far end with a whole character."""
        return not self._decoder.getstate()[0]

    def take(self, token: int) -> str:
        """Add the next token; return the new piece of text, often empty."""
        assert self.finish_reason is None, "the text has ended"
        if token in self._tokenizer.end_ids:
            return self.end()
        self.tokens.append(token)
        last = len(self.tokens) == self._max_tokens
        piece = self._show(self._decoder.decode(self._tokenizer.id_bytes(token), final=last), last)
        if last and self.finish_reason is None:
            self.finish_reason = "length"
        return piece

    def end(self) -> str:
        """End the text here, as its writer knows that nothing more may follow; return the rest."""
        assert self.finish_reason is None, "the text has ended"
        piece = self._show(self._decoder.decode(b"", final=True), last=True)
        self.finish_reason = "stop"
        return piece

    def _show(self, new: str, last: bool) -> str:
        self.num_decoded += len(new)
        text = self._withheld + new
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            self.finish_reason = "stop"
            cut = min(found)[1]
        elif last:
            cut = len(text)
        else:
            starts = [n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n])]
            cut = len(text) - max(starts, default=0)
        piece, self._withheld = text[:cut], text[cut:]
        self.num_shown += cut
        if piece:
            self._pieces.append(piece)
        return piece
