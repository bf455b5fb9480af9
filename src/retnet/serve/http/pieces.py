"""One text on its way to a client: its pieces, and how likely their tokens were."""

import codecs
from typing import Any, NamedTuple

from retnet.data import Tokenizer
from retnet.serve.engine import FinishEvent, TokenEvent, TokenLogprob, Usage

NEVER = -9999.0
"""For a logarithm of zero, which JSON has no word for."""


class Entry(NamedTuple):
    """A token, its likelihood, and how many characters stand before it."""

    token: int
    told: TokenLogprob | None
    offset: int


class Piece(NamedTuple):
    """What has become of a text in one event."""

    text: str
    entries: tuple[Entry, ...]
    finish_reason: str | None


class Progress:
    """A text as it grows.

    Attributes:
        tokenizer: the model's.
        tokens: all that the model has written, those of a stop string included.
        text: what was shown.
        usage: known at the end.
        state: likewise, where it was asked for.
    """

    def __init__(self, tokenizer: Tokenizer, begin: int = 0) -> None:
        """Begin after `begin` characters."""
        self.tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = self._begin = begin
        self._waiting: list[Entry] = []
        self.tokens: list[int] = []
        self.text = ""
        self.usage: Usage | None = None
        self.state: Any = None

    def take(self, event: TokenEvent | FinishEvent) -> Piece:
        """Go on; tokens are told of with the text that shows them, so never those that it lacks."""
        if isinstance(event, TokenEvent):
            self.tokens.append(event.token)
            self._waiting.append(self.entry(event.token, event.logprob))
            reason = None
        else:
            self.usage, self.state, reason = event.usage, event.state, event.finish_reason
        self.text += event.text
        shown = self._begin + len(self.text)
        ready = tuple(entry for entry in self._waiting if entry.offset < shown)
        self._waiting = self._waiting[len(ready) :]
        return Piece(event.text, ready, reason)

    def entry(self, token: int, told: TokenLogprob | None) -> Entry:
        """The next token's place."""
        entry = Entry(token, told, self._offset)
        self._offset += len(self._decoder.decode(self.tokenizer.id_bytes(token)))
        return entry


def completion_logprobs(tokenizer: Tokenizer, entries: tuple[Entry, ...]) -> dict[str, Any]:
    """As `/v1/completions` has them; the first token of an echoed prompt has none."""
    return {
        "tokens": [_word(tokenizer, entry.token) for entry in entries],
        "token_logprobs": [e.told and max(e.told.logprob, NEVER) for e in entries],
        "top_logprobs": [
            e.told and {_word(tokenizer, t): max(p, NEVER) for t, p in e.told.top} for e in entries
        ],
        "text_offset": [entry.offset for entry in entries],
    }


def chat_logprobs(tokenizer: Tokenizer, entries: tuple[Entry, ...]) -> dict[str, Any]:
    """As `/v1/chat/completions` has them."""

    def likely(token: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.id_bytes(token)
        word = data.decode(errors="replace") if data else _word(tokenizer, token)
        return {"token": word, "bytes": list(data), "logprob": max(logprob, NEVER)}

    return {
        "content": [
            likely(e.token, e.told.logprob) | {"top_logprobs": [likely(*top) for top in e.told.top]}
            for e in entries
            if e.told is not None
        ],
        "refusal": None,
    }


def _word(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; `bytes:` and its bytes where it is a part of a character."""
    data = tokenizer.id_bytes(token)
    if not data:
        names = {token_id: name for name, token_id in tokenizer.special_ids.items()}
        return names.get(token, "")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
