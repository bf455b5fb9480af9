"""API keys: who may ask, and whose sessions are whose."""

import hmac
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path


class Keys:
    """Keys that open the server; only their digests are kept."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Take keys.

        Raises:
            ValueError: there is none, or one is not fit for a header.
        """
        for number, key in enumerate(keys, 1):
            if not key.isascii() or not key.isprintable() or not key.strip() or " " in key:
                raise ValueError(f"API key {number} must be printable ASCII without spaces")
        if not keys:
            raise ValueError("there is no API key; give one a line, or do without the file")
        self._digests = [sha256(key.encode()).digest() for key in keys]

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Take the keys of a file: one a line; lines that begin with # are not keys.

        Raises:
            ValueError: the file cannot be read, or see the class.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ValueError(f"the file of API keys cannot be read: {error}") from error
        return cls([s for line in lines if (s := line.strip()) and not s.startswith("#")])

    def owner(self, authorization: str) -> str | None:
        """Who has the key of an `Authorization` header; None if nobody.

        It takes as long whichever key is right.
        """
        scheme, _, key = authorization.partition(" ")
        given = sha256(key.strip().encode()).digest()
        right = [hmac.compare_digest(given, digest) for digest in self._digests]
        return given.hex()[:16] if any(right) and scheme.lower() == "bearer" else None
