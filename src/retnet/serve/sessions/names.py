"""What a session may be called: it stands in addresses, lists and logs."""

from retnet.serve.sessions.errors import SessionError

LONGEST_NAME = 200


def check_name(name: str) -> None:
    """Refuse what cannot be a session's name.

    Raises:
        SessionError: it cannot.
    """
    if (
        not 1 <= len(name) <= LONGEST_NAME
        or not name.isprintable()
        or "/" in name
        or name in (".", "..")
    ):
        raise SessionError(
            f"name {name!r:.60} must have 1 to {LONGEST_NAME} printable characters and no "
            "slash, and not be . or ..; choose another"
        )


def encodable(name: str) -> str:
    """The name, with half surrogate pairs replaced, which no session's name has."""
    return name.encode("utf-8", "replace").decode()
