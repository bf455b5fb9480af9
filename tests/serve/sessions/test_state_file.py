import json
import struct
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from retnet.serve.sessions import Identity, SessionRefused, SessionStore
from retnet.serve.sessions.state_file import seal
from session_support import made_state, made_turn

Change = Callable[[dict[str, Tensor], dict[str, str]], None]


@pytest.fixture
def file(store: SessionStore, identity: Identity) -> bytes:
    store.commit("text", "", made_turn(identity, 0), None)
    return store.export("text", "")


def metadata_of(file: bytes) -> dict[str, str]:
    (size,) = struct.unpack("<Q", file[:8])
    return json.loads(file[8 : 8 + size])["__metadata__"]


def test_every_altered_byte_is_noticed(store: SessionStore, file: bytes) -> None:
    for at in range(0, len(file), 7):
        altered = bytearray(file)
        altered[at] ^= 1
        with pytest.raises(SessionRefused):
            store.import_(bytes(altered), "new", "")
    assert len(store.list("")) == 1


def test_every_truncation_is_noticed(store: SessionStore, file: bytes) -> None:
    for size in range(0, len(file), 13):
        with pytest.raises(SessionRefused, match=r"no whole safetensors file .*export it again"):
            store.import_(file[:size], "new", "")


def lose_tokens(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    del tensors["tokens"]


def lose_state(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    del tensors["state.layers.0.0.S"]


def widen(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["state.layers.0.0.S"] = torch.zeros(1, 2, 4, 5)


def halve(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["state.layers.0.0.S"] = tensors["state.layers.0.0.S"].half()


def spoil(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["state.layers.0.0.S"][0, 0, 0, 0] = torch.nan


def shift(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["state.position"] = torch.tensor([10**9])


def invent(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["tokens"] = torch.tensor([2**40])


def mislead(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors["logits"] = torch.zeros(3)


def garble(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["meta"] = "[1]"


def mutter(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["meta"] = "{"


def predate(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["format"] = "retnet-session-0"


def unname(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    del metadata["fingerprint"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lose_tokens, "no list of tokens"),
        (lose_state, "other tensors than a state of this model"),
        (widen, r"S torch.float32 \(1, 2, 4, 5\), and this model"),
        (halve, r"S torch.float16"),
        (spoil, "not finite"),
        (shift, "a state after 1000000000, which cannot be"),
        (invent, "which cannot be"),
        (mislead, r"logits torch.float32 \(3,\), and this model"),
        (garble, "no JSON object"),
        (mutter, "no JSON object"),
        (predate, 'has format "retnet-session-0"'),
        (unname, "belongs to a model of other weights"),
    ],
)
def test_a_file_made_to_mislead_is_refused_though_its_checksum_is_right(
    store: SessionStore, file: bytes, change: Change, why: str
) -> None:
    tensors, metadata = load(file), metadata_of(file)
    del metadata["checksum"]
    change(tensors, metadata)
    forged = save(tensors, seal(tensors, metadata))
    with pytest.raises(SessionRefused, match=why):
        store.import_(forged, "new", "")


def test_an_unchanged_file_made_again_is_imported(
    store: SessionStore, file: bytes, identity: Identity
) -> None:
    tensors, metadata = load(file), metadata_of(file)
    del metadata["checksum"]
    store.import_(save(tensors, seal(tensors, metadata)), "new", "")
    state = store.get("new", "").state
    assert state.layers[0][0].S.equal(made_state(identity, 0).layers[0][0].S)


@pytest.mark.parametrize("data", [b"", b"hello", save({}), save({"a": torch.zeros(2)})])
def test_other_files_are_refused(store: SessionStore, data: bytes) -> None:
    with pytest.raises(SessionRefused):
        store.import_(data, "new", "")
