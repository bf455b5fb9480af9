"""States that their owners keep: a session's file without the text, so that it does not grow."""

from collections.abc import Mapping
from typing import Any

from retnet.model import DecoderState
from retnet.serve.sessions.identity import Identity
from retnet.serve.sessions.state_file import (
    Imported,
    Snapshot,
    exported,
    imported,
    json_of,
    snapshot_tensors,
)


def give(state: DecoderState, meta: Mapping[str, Any], identity: Identity) -> bytes:
    """A state as a safetensors file, that only the model of `identity` takes back.

    Args:
        state: one row.
        meta: what belongs to it, JSON.
        identity: of the model that wrote it.
    """
    return exported(snapshot_tensors(Snapshot(state, None)), None, json_of(meta), identity)


def take(data: bytes, identity: Identity) -> Imported:
    """Read what `give` or `SessionStore.export` wrote.

    Raises:
        SessionRefused: it is no such file, damaged, altered, or another model's.
    """
    return imported(data, identity, "the state")
