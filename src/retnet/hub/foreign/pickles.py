"""PyTorch's own files, `.pt`, `.pth` and `.bin`: read without running what they hold.

Such a file is a pickle, and a pickle is a program. PyTorch's weights-only reader knows tensors and
plain containers; the one class allowed beside them is `argparse.Namespace`, a bag of values, in
which fairseq keeps its configuration.
"""

import argparse
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ZIP = b"PK\x03\x04"

_BROKEN = (
    *(RuntimeError, EOFError, ValueError, KeyError, IndexError),
    *(TypeError, AttributeError, AssertionError, OSError, struct.error, OverflowError),
)
"""What PyTorch raises for files that were cut short or altered."""


def is_torch_file(head: bytes) -> bool:
    """Whether a file that begins so may be one of PyTorch's: a zip archive, or a bare pickle."""
    return head.startswith(_ZIP) or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05")


def load_plain(path: Path) -> Any:
    """Read an object of tensors, plain containers and values.

    Tensors stay in the file, mapped into memory, unless PyTorch 1.5 or older wrote it.

    Raises:
        ValueError: it asks for anything else, which is not done, or it is damaged.
    """
    with path.open("rb") as file:
        mmap = file.read(4) == _ZIP
    try:
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(action="ignore"),  # of pickles by other protocols
        ):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from None
    except _BROKEN as error:
        raise ValueError(
            f"{path} cannot be read: {_first_line(error)}; it is damaged or no file of weights: "
            "fetch it again"
        ) from None


def tensors_of(found: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """The named tensors of what a file holds, and fairseq's configuration beside them.

    Args:
        found: a dictionary of tensors, or fairseq's `{"model": ..., "cfg" or "args": ...}`.
        path: where it was, for messages.

    Returns:
        The tensors, the configuration, and where that was; both empty if there is none.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{path} holds a {type(found).__name__} and no named tensors; save the model's "
            "state_dict()"
        )
    if "shard_metadata" in found:
        raise ValueError(
            f"{path} is one rank's shard of a model that was trained with FSDP (shard_metadata); "
            "put the shards together where it was trained (fairseq's consolidate_fsdp_shards)"
        )
    model = found.get("model")
    if isinstance(model, Mapping):
        config, origin = _fairseq_config(found)
        return _only_tensors(model, path), config, origin
    return _only_tensors(found, path), {}, ""


def _only_tensors(named: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    others = [str(name) for name, value in named.items() if not isinstance(value, Tensor)]
    if others or not named:
        raise ValueError(
            f"{path} holds {', '.join(others[:5]) or 'nothing'}, and tensors by name are wanted, "
            "or fairseq's \"model\" with such; save the model's state_dict()"
        )
    for name, x in named.items():
        if x.layout != torch.strided or x.untyped_storage().nbytes() < x.numel() * x.itemsize:
            raise ValueError(
                f"{path}: {name} is no plain tensor (sparse, quantised, or one number repeated); "
                "save it as a plain one"
            )
    return {str(name): x.detach() for name, x in named.items()}


def _fairseq_config(found: Mapping[Any, Any]) -> tuple[dict[str, Any], str]:
    cfg = found.get("cfg")
    places = (("cfg.model", cfg.get("model") if isinstance(cfg, Mapping) else None),)
    for origin, value in (*places, ("args", found.get("args"))):
        values = vars(value) if isinstance(value, argparse.Namespace) else value
        if isinstance(values, Mapping) and values:
            return {str(key): item for key, item in values.items()}, origin
    return {}, ""


def _refusal(path: Path, message: str) -> str:
    names = re.findall(r"(?:GLOBAL|class|function|type) ['\"`]?([\w.]+\.[\w.]+)", message)
    asks = names[0] if names else "something other than tensors"
    return (
        f"{path} is a pickle that asks for {asks}; only tensors, plain values and "
        "argparse.Namespace are read, because a pickle can run any program, and nothing of it was "
        "run. If you trust its maker, load it where it was made and save the state_dict() alone"
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0]
