"""Files of rwkv.cpp: a header of six numbers, then tensors one after another."""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from retnet.hub.foreign.tensors import Entry, Opened

MAGIC = b"fmgg"  # 0x67676d66, little-endian
VERSIONS = (100, 101)
"""They differ in how quantised numbers lie."""

TYPES = {0: torch.float32, 1: torch.float16}
QUANTISED = {2: "Q4_0", 3: "Q4_1", 4: "Q4_1_O", 5: "Q4_2", 6: "Q4_3"}
QUANTISED |= {7: "Q5_0", 8: "Q5_1", 9: "Q8_0"}
NUMBER_OF = {dtype: number for number, dtype in TYPES.items()}


def is_rwkv_cpp_file(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return head.startswith(MAGIC)


def open_rwkv_cpp(path: Path) -> Opened:
    """Read the names of a file, and where its tensors lie.

    Raises:
        ValueError: it is quantised, of an unknown version, or cut short.
    """
    entries: dict[str, Entry] = {}
    places: dict[str, int] = {}
    with path.open("rb") as file:
        _, version, n_vocab, n_embed, n_layer, number = _numbers(file, path, 6)
        if version not in VERSIONS:
            raise ValueError(
                f"{path} is of version {version} of rwkv.cpp's format; "
                f"{' and '.join(map(str, VERSIONS))} are read: make it again from the .pth file"
            )
        _refuse_quantised(path, "the file", number)
        end = path.stat().st_size
        while file.tell() < end:
            name, entry = _tensor_header(file, path)
            if name in entries:
                raise ValueError(f"{path} is damaged: it has {name} twice; fetch it again")
            entries[name], places[name] = entry, file.tell()
            if file.tell() + entry.num_bytes > end:
                raise ValueError(f"{path} ends within {name}; fetch it again")
            file.seek(entry.num_bytes, 1)
    said = {"n_vocab": n_vocab, "n_embed": n_embed, "n_layer": n_layer}
    config = {"rwkv.cpp": version, "data_type": "FP16" if number else "FP32", **said}

    def read(name: str) -> Tensor:
        shape, dtype = entries[name]
        kind = np.dtype("<f2" if dtype == torch.float16 else "<f4")
        count = torch.Size(shape).numel()
        return torch.from_numpy(np.fromfile(path, kind, count, offset=places[name])).view(shape)

    return Opened(entries, read, config, "its header")


def save_rwkv_cpp(
    path: Path, entries: Mapping[str, Entry], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write such a file, of version 101.

    Raises:
        ValueError: matrices are neither all float32 nor all float16.
    """
    kinds = {entry.dtype for entry in entries.values() if len(entry.shape) > 1}
    if len(kinds) > 1 or not kinds <= NUMBER_OF.keys():
        have = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in kinds))
        raise ValueError(
            f"rwkv.cpp's files hold float32 or float16, and these weights are {have}; choose one "
            "with --dtype"
        )
    n_vocab, n_embed = entries["emb.weight"].shape
    n_layer = len({name.split(".")[1] for name in entries if name.startswith("blocks.")})
    with path.open("wb") as file:
        header = VERSIONS[-1], n_vocab, n_embed, n_layer, NUMBER_OF[kinds.pop()]
        file.write(MAGIC + struct.pack("<5i", *header))
        for name, x in tensors:
            key = name.encode()
            file.write(struct.pack("<3i", x.ndim, len(key), NUMBER_OF[x.dtype]))
            file.write(struct.pack(f"<{x.ndim}i", *reversed(x.shape)) + key)  # fastest first
            numbers = x.detach().cpu().contiguous().numpy()
            file.write(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())


def _tensor_header(file: BinaryIO, path: Path) -> tuple[str, Entry]:
    num_dims, key_bytes, number = _numbers(file, path, 3)
    if not (1 <= num_dims <= 4 and 1 <= key_bytes <= 1024):
        raise ValueError(f"{path} is damaged at byte {file.tell()}; fetch it again")
    shape = tuple(reversed(_numbers(file, path, num_dims)))
    name = file.read(key_bytes).decode(errors="replace")
    _refuse_quantised(path, name, number)
    if min(shape) < 1:
        raise ValueError(f"{path} is damaged: {name} has the shape {shape}; fetch it again")
    return name, Entry(shape, TYPES[number])


def _refuse_quantised(path: Path, what: str, number: int) -> None:
    if number not in TYPES:
        raise ValueError(
            f"{path}: {what} has numbers of type {QUANTISED.get(number, number)}; FP32 and FP16 "
            "are read: make the file from the .pth again, without quantising it"
        )


def _numbers(file: BinaryIO, path: Path, count: int) -> tuple[int, ...]:
    data = file.read(4 * count)
    if len(data) < 4 * count:
        raise ValueError(f"{path} ends within a header; fetch it again")
    return struct.unpack(f"<{count}i", data)
