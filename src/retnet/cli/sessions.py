"""A text of `retnet chat` that outlives it: a session in the store that the server uses too."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retnet.data import Tokenizer
    from retnet.model import Decoder
    from retnet.model.generation import Session
    from retnet.serve.sessions import Identity

OWNER = ""
"""Of sessions that are made without a server's keys."""


class NamedText:
    """A session under a name: read once, then committed after each turn."""

    def __init__(self, place: Path | str, name: str, identity: "Identity") -> None:
        """Open a folder, or make it, or connect to Redis."""
        from retnet.serve.sessions import SessionStore

        self.name = name
        self._store = SessionStore(place, identity)
        self._version: int | None = None
        self._num_replies = 0

    def read(self, model: "Decoder", tokenizer: "Tokenizer") -> "Session":
        """The session as it was left; a new one if there is none of this name.

        Raises:
            SessionRefused: it is another model's, or damaged.
        """
        from retnet.model.generation import Pause, Session
        from retnet.serve.sessions import SessionMissing

        try:
            stored = self._store.get(self.name, OWNER)
        except SessionMissing:
            self._version, self._num_replies = None, 0
            return Session(model, tokenizer)
        self._version, self._num_replies = stored.version, 0
        unread = stored.meta.get("unread")
        if unread is None or stored.logits is None:  # a server's, which has read all of its text
            return Session(model, tokenizer, stored.state)
        pause = Pause(stored.state, stored.logits, unread["tokens"], unread["text"], unread["turn"])
        self._num_replies = pause.num_replies
        return Session.resume(model, tokenizer, pause)

    def commit(self, session: "Session") -> None:
        """Keep the turn that a session has taken since it was read or committed, if any.

        Raises:
            VersionConflict: another program has written to the session since.
        """
        from retnet.serve.sessions import Turn

        pause = session.pause()
        if pause is None or pause.num_replies == self._num_replies:
            return
        unread = {
            "tokens": pause.unread_tokens,
            "text": pause.unread_text,
            "turn": pause.num_replies,
        }
        turn = Turn(
            state=pause.state,
            tokens=session.read_tokens,
            meta={"unread": unread},
            logits=pause.logits,
        )
        self._version = self._store.commit(self.name, OWNER, turn, self._version)
        self._num_replies = pause.num_replies

    def remove(self) -> None:
        """Forget the session, if it was ever committed."""
        if self._version is not None:
            self._store.delete(self.name, OWNER)
        self._version, self._num_replies = None, 0
