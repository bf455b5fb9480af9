"""Files of weights, written tensor by tensor."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from retnet.hub.foreign.sources import DTYPES
from retnet.hub.foreign.tensors import Entry

Writer = Callable[[Path, Mapping[str, Entry], Iterable[tuple[str, Tensor]]], None]
"""Takes what is known of all tensors, then each of them once, in any order."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_safetensors(
    path: Path, entries: Mapping[str, Entry], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write a safetensors file, holding one tensor at a time.

    The header, which says where each tensor lies, comes first in the file: it is made from the
    entries, as safetensors' own writer would: the widest numbers first, then by name.
    """
    order = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    starts, end = {}, 0
    for name in order:
        entry, starts[name] = entries[name], end
        end += entry.num_bytes
        header[name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        written = set()
        for name, x in tensors:
            assert Entry(tuple(x.shape), x.dtype) == entries[name], name
            file.seek(8 + len(text) + starts[name])
            file.write(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            written.add(name)
        assert written == entries.keys()


def save_torch(
    path: Path,
    entries: Mapping[str, Entry],  # noqa: ARG001
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Write a dictionary of tensors as `torch.save` does, which takes all of them at once."""
    # copies: a tensor may be a view of a whole file, all of which would be saved
    torch.save({name: x.detach().clone() for name, x in tensors}, path)
