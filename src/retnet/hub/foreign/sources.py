"""Where foreign checkpoints come from: folders, safetensors files, PyTorch's files."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open
from torch import Tensor

from retnet.hub.files import read_object
from retnet.hub.foreign.pickles import is_torch_file, load_plain, tensors_of
from retnet.hub.foreign.rwkv_cpp_file import is_rwkv_cpp_file, open_rwkv_cpp
from retnet.hub.foreign.tensors import Entry, Opened, Source

FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""Names that the weights of a folder have, the first found is taken."""

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

RENEW_BYTES = 1 << 26
"""A mapped file is mapped anew after so many bytes were read, so that its pages do not pile up."""

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}
"""By safetensors' names."""


Opener = Callable[[Path], Opened]


def open_safetensors(path: Path) -> Opened:
    """Read the header of a safetensors file."""
    try:
        file = safe_open(path, framework="pt")
        entries = {}
        for name in file.keys():  # noqa: SIM118 (it is no dictionary)
            part = file.get_slice(name)
            if part.get_dtype() not in DTYPES:
                raise ValueError(
                    f"{path}: {name} has numbers of type {part.get_dtype()}, which is not "
                    f"converted; there are {', '.join(DTYPES)}"
                )
            entries[name] = Entry(tuple(part.get_shape()), DTYPES[part.get_dtype()])
        metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from None
    try:
        config = json.loads(metadata.get("config", "{}"))
    except json.JSONDecodeError:
        config = {}
    found = isinstance(config, dict) and bool(config)
    return Opened(entries, file.get_tensor, config if found else {}, "its header" if found else "")


def open_torch(path: Path) -> Opened:
    """Read the pickle of a PyTorch file, whose tensors stay in the file."""
    tensors, config, origin = tensors_of(load_plain(path), path)
    entries = {name: Entry(tuple(x.shape), x.dtype) for name, x in tensors.items()}
    return Opened(entries, tensors.__getitem__, config, origin)


CONTAINERS: tuple[tuple[Callable[[bytes], bool], Opener], ...] = (
    (is_torch_file, open_torch),
    (is_rwkv_cpp_file, open_rwkv_cpp),
    (lambda head: head[8:9] == b"{", open_safetensors),
)
"""Who knows a file by its first 16 bytes."""


class Files:
    """The tensors of one or several files; see `Source`."""

    def __init__(self, path: Path, files: Iterable[Path]) -> None:
        """Open the files.

        Args:
            path: what the user named.
            files: those that hold the weights.

        Raises:
            ValueError: one cannot be read, or two hold tensors of one name.
        """
        self.path = path
        self.config: Mapping[str, Any] = {}
        self.origin = ""
        self.entries: dict[str, Entry] = {}
        self._parts = [_Part(file) for file in files]
        self._part_of: dict[str, _Part] = {}
        for part in self._parts:
            for name, entry in part.opened.entries.items():
                if name in self._part_of:
                    raise ValueError(
                        f"{name} is in {self._part_of[name].path} and in {part.path}; each tensor "
                        "must be in one file"
                    )
                self._part_of[name], self.entries[name] = part, entry
            if part.opened.config:
                self.config, self.origin = part.opened.config, part.opened.origin

    def read(self, name: str) -> Tensor:
        """See `Tensors`."""
        return self._part_of[name].read(name)


class _Part:
    """A file, opened anew now and then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open = _opener(path)
        self.opened = self._open(path)
        self._num_read = 0

    def read(self, name: str) -> Tensor:
        entry = self.opened.entries[name]
        if self._num_read and self._num_read + entry.num_bytes > RENEW_BYTES:
            self.opened, self._num_read = self._open(self.path), 0
        self._num_read += entry.num_bytes
        return self.opened.read(name)


def open_source(path: str | Path) -> Source:
    """Open a checkpoint, its tensors unread.

    Args:
        path: a file of weights, or a folder with one (or several and their index) and perhaps a
            config.json.

    Raises:
        ValueError: there is none, or it cannot be read; the message says what to give.
    """
    path = Path(path)
    if path.is_file():
        return Files(path, [path])
    if not path.is_dir():
        raise ValueError(f"{path} does not exist; give a checkpoint's folder or file")
    source = Files(path, _weights(path))
    if (path / "config.json").exists():
        source.config, source.origin = read_object(path / "config.json"), "config.json"
    return source


def _opener(path: Path) -> Opener:
    if re.search(r"-shard\d+\.\w+$|\.distcp$", path.name):
        raise ValueError(
            f"{path} is one rank's part of a sharded checkpoint; put the parts together with the "
            "program that wrote them"
        )
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; see to it") from None
    if head == b"version https://":
        raise ValueError(
            f"{path} is a pointer of Git LFS, and not the file that it stands for; fetch that with "
            "git lfs pull"
        )
    for knows, opener in CONTAINERS:
        if knows(head):
            return opener
    raise ValueError(
        f"{path} is no file of weights that is known; give a .safetensors, .pt, .pth or .bin file"
    )


def _weights(folder: Path) -> list[Path]:
    for name in FOLDER_FILES:
        if (folder / name).exists():
            if not name.endswith(".index.json"):
                return [folder / name]
            places = read_object(folder / name).get("weight_map")
            if not isinstance(places, dict) or not places:
                raise ValueError(f"{folder / name} has no weight_map; fetch it again")
            files = [folder / Path(str(file)).name for file in sorted(set(places.values()))]
            for file in files:
                if not file.exists():
                    raise ValueError(f"{file} does not exist, and {name} names it; fetch it too")
            return files
    files = sorted(file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    if len(files) != 1:
        found = ", ".join(file.name for file in files[:5]) or "none"
        raise ValueError(
            f"{folder} must hold one file of weights ({', '.join(FOLDER_FILES)} or another name "
            f"with {', '.join(WEIGHT_SUFFIXES)}), and there is {found}; give the file itself"
        )
    return files
