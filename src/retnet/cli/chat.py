"""Write a text in turns with a model, at constant memory.

The model has learnt to continue text, not to answer.

It keeps its state between turns: nothing is read twice, and nothing grows.

Example: retnet chat runs/demo --max-tokens 60
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from tyro.conf import UseAppendAction, arg

from retnet.cli.options import (
    Adapter,
    Checkpoint,
    SamplingOptions,
    WeightsChoice,
    packed,
    parse,
)
from retnet.cli.pace import Pace
from retnet.cli.screen import show_piece
from retnet.cli.sessions import NamedText

if TYPE_CHECKING:
    from retnet.data import Tokenizer
    from retnet.model import Decoder

GREETING = """\
This is a base model: it continues your text, and knows nothing of questions.
Type the beginning of a text. An empty line lets it go on, Ctrl-C stops it, and
/help says more."""

HELP = """\
  text    is added to the text so far, exactly as typed; the model continues it
  text\\   a backslash at the end is a line break, and the turn goes on
          an empty line lets the model go on where it stopped
  /reset  begin a new text; one with a name is deleted
  /stats  size of the text so far and of the state, and the last turn's pace
  /quit   leave, as Ctrl-D does"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """See the module."""

    checkpoint: Checkpoint
    """Folder of a model."""
    adapter: Adapter = ""
    weights: WeightsChoice = "saved"
    max_tokens: Annotated[int, arg(metavar="N")] = 200
    """Tokens to write at most in a turn."""
    stop: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="TEXT")] = ()
    """End a turn before this text."""
    session: Annotated[str, arg(metavar="NAME")] = ""
    """Keep the text under this name."""
    data_dir: Annotated[str, arg(metavar="FOLDER")] = "sessions"
    """Their folder, or redis://HOST/0."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """How to choose tokens."""


def main(words: Sequence[str]) -> None:
    """Run `retnet chat`."""
    options = parse(Options, "chat", words, __doc__ or "")
    options.sampling.sampling()  # refused before anything slow

    from retnet.hub import load

    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  (it gives input() editing and history)

    model, tokenizer = load(options.checkpoint, adapter=options.adapter or None)
    named = _named(options, model)
    chat = Chat(packed(model, options.weights), tokenizer, options, named)
    print(GREETING)
    chat.tell_where()
    for typed in _typed():
        if typed == "/quit":
            return
        chat.obey(typed)


def _named(options: Options, model: "Decoder") -> NamedText | None:
    if not options.session:
        return None
    from retnet.serve.sessions import identify

    return NamedText(options.data_dir, options.session, identify(model))


class Chat:
    """The text so far, and what may be done with it; with a name it outlives the chat."""

    def __init__(
        self, model: "Decoder", tokenizer: "Tokenizer", options: Options, named: NamedText | None
    ) -> None:
        from retnet.model.generation import Session

        self._model = model
        self._tokenizer = tokenizer
        self._options = options
        self._named = named
        self._session = Session(model, tokenizer) if named is None else named.read(model, tokenizer)
        self._stats = "nothing was written yet"

    def tell_where(self) -> None:
        """Say how long a text with a name is."""
        if self._named is not None:
            print(f'session "{self._named.name}": {self._num_tokens():,} tokens so far')

    def obey(self, typed: str) -> None:
        """Do what a line says, or let the model continue it."""
        if typed == "/help":
            print(HELP)
        elif typed == "/reset":
            self._reset()
            print("a new text begins")
        elif typed == "/stats":
            print(self._stats)
        elif typed.startswith("/") and typed[1:].isalpha():
            print(f'"{typed}" is no command; the commands are /help, /reset, /stats and /quit')
        else:
            self._turn(typed)

    def _reset(self) -> None:
        from retnet.model.generation import Session

        if self._named is not None:
            self._named.remove()
        self._session = Session(self._model, self._tokenizer)
        self._stats = "nothing was written yet"

    def _keep(self) -> None:
        """Commit the turn; if another program was first, go on from what that wrote."""
        from retnet.serve.sessions import SessionError

        if self._named is None:
            return
        try:
            self._named.commit(self._session)
        except SessionError as error:
            print(f"error: this turn is not kept: {error}", file=sys.stderr)
            self._session = self._named.read(self._model, self._tokenizer)
            self.tell_where()

    def _turn(self, typed: str) -> None:
        """Print the continuation as it comes; Ctrl-C ends it, and the text goes on from there."""
        pace, before, piece = Pace(), 0, ""
        try:
            pieces = self._session.send(
                typed,
                max_tokens=self._options.max_tokens,
                sampling=self._options.sampling.sampling(),
                stop=self._options.stop,
            )
            before = self._num_tokens()
            for piece in pieces:
                pace.begin()
                show_piece(piece)
            print("" if piece else "[here the model ends the text]")
        except KeyboardInterrupt:
            print(" [stopped]")
        except ValueError as error:  # such as broken UTF-8; the text so far is not lost for it
            print(f"error: {error}", file=sys.stderr)
        pace.end()
        self._keep()
        after = self._num_tokens()
        self._stats = (
            f"text so far: {after:,} tokens\nlast turn: "
            # the last token is read when the text goes on
            + pace.report(self._model, [after - before + 1])
        )

    def _num_tokens(self) -> int:
        state = self._session.state
        return 0 if state is None else int(state.position)


def _typed() -> Iterator[str]:
    """Yield what the user types, until the end of input."""
    lines: list[str] = []
    while True:
        try:
            line = input("... " if lines else ">>> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            lines = []
            print("\n(/quit or Ctrl-D leaves)", file=sys.stderr)
            continue
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            yield "\n".join(lines)
            lines = []
