"""Files of a checkpoint folder: written whole or not at all, and read with a plain message."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file
from torch import Tensor


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a temporary neighbour, flush it to disk, and rename it to `path`.

    A crash leaves the last good file, or none.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
    temporary.replace(path)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    try:
        number = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object for people to read, as `write_atomic` does."""
    text = json.dumps(data, indent=2) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a JSON file; FileNotFoundError and NotADirectoryError are the caller's to explain."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}; restore it from a backup") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must be there and hold an object.

    Raises:
        ValueError: it is missing or broken.
    """
    try:
        data = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; restore it from a backup") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object; restore it from a backup")
    return data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file into memory, or the shards that an index names in its place.

    Raises:
        ValueError: it is missing or damaged.
    """
    index = path.with_name(f"{path.name}.index.json")
    if index.exists() and not path.exists():
        places = read_object(index).get("weight_map")
        if not isinstance(places, dict):
            raise ValueError(f"{index} has no weight_map; restore it from a backup")
        shards = (read_tensors(path.with_name(name)) for name in sorted(set(places.values())))
        return {name: tensor for shard in shards for name, tensor in shard.items()}
    try:
        # copies: tensors of a file lie at odd addresses, where sums may round differently
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; the checkpoint is incomplete") from None
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}); restore it from a backup or train again"
        ) from None


def refuse_other_tensors(
    want: Mapping[str, Tensor], have: Mapping[str, Tensor], what: str, remedy: str
) -> None:
    """Compare the names and shapes of tensors.

    Args:
        want: those there should be.
        have: those of a file.
        what: the file, and what it should fit, for the message.
        remedy: the end of the message.

    Raises:
        ValueError: they differ; the message names some that do.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in want.items()}
    found = {name: tuple(tensor.shape) for name, tensor in have.items()}
    if wanted == found:
        return
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    both = sorted(wanted.keys() & found.keys())
    shapes = [f"{n} {found[n]} for {wanted[n]}" for n in both if wanted[n] != found[n]]
    raise ValueError(
        f"{what}: missing {missing[:3]}, unknown {unknown[:3]}, other shapes {shapes[:3]}; {remedy}"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
