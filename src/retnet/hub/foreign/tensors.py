"""Named tensors of a checkpoint, described at once and read one at a time."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class Entry(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Of its numbers."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def meta(self) -> Tensor:
        """A tensor of this shape and dtype without numbers."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


@runtime_checkable
class Tensors(Protocol):
    """Named tensors that need not fit into memory together."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """All of them; nothing is read."""
        ...

    def read(self, name: str) -> Tensor:
        """One of them; whoever keeps it keeps its memory."""
        ...


@runtime_checkable
class Source(Tensors, Protocol):
    """A checkpoint as it was found: in a folder, a file, or one file among several.

    Attributes:
        path: what the user named.
        config: its own configuration: of config.json, of a safetensors header ("config"), or of
            fairseq's container; empty if it has none.
        origin: where that was, for messages; empty if it has none.
    """

    path: Path
    config: Mapping[str, Any]
    origin: str


class Opened(NamedTuple):
    """A file whose tensors can be read.

    Attributes:
        entries: its tensors.
        read: one of them.
        config: that the file holds beside them; empty if none.
        origin: where in the file.
    """

    entries: Mapping[str, Entry]
    read: Callable[[str], Tensor]
    config: Mapping[str, Any]
    origin: str


class Prefixed:
    """A source whose names lose a prefix; a name without it stays as it is."""

    def __init__(self, source: Source, prefix: str) -> None:
        self.path, self.config, self.origin = source.path, source.config, source.origin
        self._source = source
        self._names = {name.removeprefix(prefix): name for name in source.entries}
        self.entries = {new: source.entries[old] for new, old in self._names.items()}

    def read(self, name: str) -> Tensor:
        """See `Tensors`."""
        return self._source.read(self._names[name])


class Cast:
    """The same tensors in other dtypes."""

    def __init__(self, tensors: Tensors, dtypes: Mapping[str, torch.dtype]) -> None:
        """Name the tensors to convert; the others stay as they are."""
        self._tensors = tensors
        self.entries = {
            name: entry._replace(dtype=dtypes.get(name, entry.dtype))
            for name, entry in tensors.entries.items()
        }

    def read(self, name: str) -> Tensor:
        """See `Tensors`."""
        return self._tensors.read(name).to(self.entries[name].dtype)
