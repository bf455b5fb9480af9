"""What a text goes on from, and where its state goes at the end."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationError

from retnet.data import Tokenizer
from retnet.model import DecoderState
from retnet.serve.http.errors import ApiError
from retnet.serve.http.pieces import Progress
from retnet.serve.sessions import Turn


class Unread(BaseModel):
    """What `retnet chat` has written and its state has not read: tokens, and then text."""

    model_config = ConfigDict(strict=True)

    tokens: list[int] = []
    text: str = ""


class Remembered(BaseModel):
    """What is kept with a state, as far as it matters for going on.

    `tail` is text that the model wrote after its answer's end, and remembers: a stop string.
    """

    model_config = ConfigDict(strict=True)

    tail: str = ""
    unread: Unread = Unread()
    instructions: str | None = None


class Before(NamedTuple):
    """What was read and written before a request.

    Attributes:
        state: one row; None where a text begins.
        num_tokens: of the text so far; they cost nothing now.
        remembered: see there.
    """

    state: DecoderState | None = None
    num_tokens: int = 0
    remembered: Remembered = Remembered()

    @classmethod
    def of(
        cls, state: DecoderState, num_tokens: int, meta: Mapping[str, Any], param: str
    ) -> "Before":
        """Go on from a state; `param` is the field that names or brings it.

        Raises:
            ApiError: its metadata are not ours.
        """
        try:
            return cls(state, num_tokens, Remembered.model_validate(dict(meta)))
        except ValidationError as error:
            place, why = error.errors()[0]["loc"], error.errors()[0]["msg"]
            where = ".".join(map(str, place))
            raise ApiError(400, f"its metadata have a wrong {where}: {why}", param=param) from error

    def unread(self, tokenizer: Tokenizer, text: str = "") -> list[int]:
        """Tokens to read before all others; of a text, they are those that go on with it."""
        unread = self.remembered.unread
        return [*unread.tokens, *tokenizer.encode(unread.text + text)]


@runtime_checkable
class Keeping(Protocol):
    """One turn of a text that outlives its requests. Nothing is kept of a turn that fails.

    Attributes:
        keeps: whether `keep` will be called, if all goes well.
        before: known when `open` has returned.
    """

    keeps: bool
    before: Before

    async def open(self) -> None:
        """Look up what was before.

        Raises:
            ApiError: it cannot be had.
            SessionError: likewise.
        """
        ...

    async def keep(self, turn: Turn) -> dict[str, Any]:
        """Keep the turn; return what the client is told of it."""
        ...

    def release(self) -> None:
        """The turn is over, well or not; called once."""
        ...


class Unkept:
    """A text that nothing precedes, and of which nothing is kept."""

    keeps = False
    before = Before()

    async def open(self) -> None:
        """Nothing to look up."""

    async def keep(self, turn: Turn) -> dict[str, Any]:
        """Never called."""
        raise AssertionError(turn)

    def release(self) -> None:
        """Nothing to do."""


def turn_of(prompt: Sequence[int], progress: Progress, meta: Mapping[str, Any]) -> Turn:
    """What a request adds to a text; its metadata are those of the route and the tail."""
    written = b"".join(map(progress.tokenizer.id_bytes, progress.tokens)).decode(errors="replace")
    assert written.startswith(progress.text)
    return Turn(
        state=progress.state,
        tokens=[*prompt, *progress.tokens],
        meta={**meta, "tail": written[len(progress.text) :]},
    )
