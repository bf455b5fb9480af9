"""Safetensors files that say whose state they hold, and prove that it is as it was written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from retnet.hub.files import flush
from retnet.model import DecoderState
from retnet.model.state import state_tensors
from retnet.serve.sessions.errors import SessionRefused
from retnet.serve.sessions.identity import REMEDY, Identity

FORMAT = "retnet-session-1"
LOGITS, TOKENS = "logits", "tokens"
STATE = "state."


class Snapshot(NamedTuple):
    """What a file holds beside its metadata.

    Attributes:
        state: one row.
        logits: (V,) that follow it; None if they were not kept.
    """

    state: DecoderState
    logits: Tensor | None


def snapshot_tensors(snapshot: Snapshot) -> dict[str, Tensor]:
    """Its tensors by their names in a file, on the host, sharing no memory with others."""
    tensors = {STATE + name: tensor for name, tensor in state_tensors(snapshot.state).items()}
    if snapshot.logits is not None:
        tensors[LOGITS] = snapshot.logits
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }


def sealed_for(tensors: Mapping[str, Tensor], identity: Identity) -> dict[str, str]:
    """The metadata of a state of this model."""
    return seal(tensors, _whose(identity))


def write_state(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file whole, or not at all: a temporary name, flushed, renamed.

    A state tells what was said: nobody but its owner may read it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(dict(tensors), temporary, metadata=dict(metadata))
        temporary.chmod(0o600)
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)  # its name too, before an index that outlives a power cut names it
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_state(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file, bit for bit.

    Raises:
        FileNotFoundError: it is not there.
        SessionRefused: it is damaged.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        # copies: tensors of a file lie at odd addresses, where sums may round differently
        return metadata, {name: tensor.clone() for name, tensor in load_file(path).items()}
    except safetensors.SafetensorError as error:
        raise SessionRefused(f"state {path.name} is damaged ({error}); {RESTORE}") from None


def state_bytes_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """What `write_state` writes."""
    return save(dict(tensors), dict(metadata))


def parsed(data: bytes, what: str, remedy: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file.

    Raises:
        SessionRefused: it is none, or not whole.
    """
    try:
        tensors = {name: tensor.clone() for name, tensor in load(data).items()}
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise SessionRefused(f"{what} is no whole safetensors file ({error}); {remedy}") from None
    return header.get("__metadata__") or {}, tensors


def exported(
    tensors: Mapping[str, Tensor], tokens: np.ndarray | None, meta: str, identity: Identity
) -> bytes:
    """A session as one file.

    Args:
        tensors: of its state, see `snapshot_tensors`.
        tokens: all of its text, uint32; None leaves it out.
        meta: what its owner keeps with it, JSON.
        identity: of the model that wrote it.
    """
    whole = dict(tensors)
    if tokens is not None:
        whole[TOKENS] = torch.from_numpy(tokens.astype("<i8"))
    return save(whole, seal(whole, {**_whose(identity), "meta": meta}))


class Imported(NamedTuple):
    """A session that came as a file; `tokens` is None where they were left out."""

    snapshot: Snapshot
    tokens: list[int] | None
    meta: dict[str, Any]


def imported(data: bytes, identity: Identity, what: str = "the file") -> Imported:
    """Read what `exported` wrote.

    Raises:
        SessionRefused: it is no such file, damaged, altered, or another model's.
    """
    metadata, tensors = parsed(data, what, AGAIN)
    refuse_other(metadata, tensors, identity, what, AGAIN)
    tokens = tensors.pop(TOKENS, None)
    if tokens is not None and (tokens.ndim != 1 or tokens.dtype != torch.int64):
        raise SessionRefused(f"{what} has no list of tokens; {AGAIN}")
    for name, tensor in tensors.items():  # sampling refuses a whole batch for one NaN
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise SessionRefused(f"{what} has numbers in {name} that are not finite; {REMEDY}")
    snapshot = snapshot_of(tensors, identity, what)
    position = int(snapshot.state.position[0])
    if not 0 < position < LONGEST:
        raise SessionRefused(f"{what} has a state after {position} tokens; {AGAIN}")
    if tokens is not None and (
        position > len(tokens) or not 0 <= tokens.min() <= tokens.max() < VOCABULARY
    ):
        raise SessionRefused(
            f"{what} has {len(tokens)} tokens and a state after {position}, which cannot be; "
            f"{AGAIN}"
        )
    try:
        meta = json.loads(metadata.get("meta", "{}"))
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise SessionRefused(f"{what} has metadata that is no JSON object; {AGAIN}")
    return Imported(snapshot, None if tokens is None else tokens.tolist(), meta)


LONGEST = 2**53
"""Tokens of a text, beyond which floating-point numbers cannot count."""
VOCABULARY = 2**32
LARGEST_META = 1 << 24
"""Bytes of JSON: a file's header, in which it travels, must stay under 100 MB."""

RESTORE = "go back to an earlier turn of this session, or delete it"
AGAIN = "export it again"


def seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata, and a checksum of it and of every tensor."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            data: Any = (
                tensor.reshape(-1).view(torch.uint8).numpy()
            )  # a buffer, which numpy's types do not say
            digest.update(data)
    return {**metadata, "checksum": digest.hexdigest()}


def json_of(meta: Mapping[str, Any]) -> str:
    """Metadata as text.

    Raises:
        ValueError: it has no words for something, or too many.
    """
    try:
        text = json.dumps(dict(meta), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"meta is not JSON ({error}); give text, numbers and lists of them"
        ) from None
    if len(text) > LARGEST_META:
        raise ValueError(f"meta has {len(text):,} bytes of JSON; it may have {LARGEST_META:,}")
    return text


def refuse_other(
    metadata: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    identity: Identity,
    what: str,
    remedy: str,
) -> None:
    """Refuse a file that is not as it was written, or is not of this model."""
    if metadata.get("format") != FORMAT:
        raise SessionRefused(
            f'{what} has format "{metadata.get("format")}"; it must be "{FORMAT}": {REMEDY}'
        )
    unsealed = {key: value for key, value in metadata.items() if key != "checksum"}
    if seal(tensors, unsealed) != metadata:
        raise SessionRefused(
            f"{what} is not as it was written (its checksum does not fit); {remedy}"
        )
    refuse_fingerprint(metadata.get("fingerprint", ""), metadata.get("config", ""), identity, what)


def refuse_fingerprint(fingerprint: str, config: str, identity: Identity, what: str) -> None:
    """Refuse what belongs to another model, and say in what that differs."""
    if fingerprint == identity.fingerprint:
        return
    differs = "weights" if config == identity.config else "config"
    raise SessionRefused(
        f"{what} belongs to a model of other {differs} (fingerprint {fingerprint[:12]}; this one "
        f"is {identity.fingerprint[:12]}); use the model that wrote it, with the same adapter"
    )


def _whose(identity: Identity) -> dict[str, str]:
    return {"format": FORMAT, "fingerprint": identity.fingerprint, "config": identity.config}


def snapshot_of(tensors: dict[str, Tensor], identity: Identity, what: str) -> Snapshot:
    """What these tensors are, by their names in a file."""
    logits = tensors.get(LOGITS)
    if logits is not None and (
        logits.shape != (identity.vocab_size,) or not logits.is_floating_point()
    ):
        raise SessionRefused(
            f"{what} has logits {logits.dtype} {tuple(logits.shape)}, and this model those of "
            f"{identity.vocab_size} tokens; {REMEDY}"
        )
    state = {name.removeprefix(STATE): t for name, t in tensors.items() if name != LOGITS}
    return Snapshot(identity.state_of(state, what), logits)
