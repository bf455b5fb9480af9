"""Adapters: a small folder that changes a checkpoint, and names the one that it belongs to.

There are two kinds. A LoRA adapter (Hu et al. 2021, arXiv:2106.09685) adds `alpha / rank B A` to
weight matrices; it is a PEFT folder, and PEFT is not needed to read it. A state adapter holds the
states with which documents begin. Both come with `tuning.json`: the base's place and fingerprint.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from retnet.hub.files import (
    read_object,
    read_tensors,
    refuse_other_tensors,
    write_atomic,
    write_json,
)
from retnet.hub.lora import (
    CONFIG,
    WEIGHTS,
    LoraInfo,
    merge_lora,
    read_lora,
    read_lora_info,
    write_lora_info,
)
from retnet.model import Decoder
from retnet.model.initial_state import add_initial_state, initial_tensors

FORMAT = 1
TUNING = "tuning.json"
STATES = "initial_state.safetensors"


@dataclass(frozen=True, kw_only=True)
class AdapterInfo:
    """What an adapter changes, and in which model.

    Attributes:
        base: path of the checkpoint that it belongs to, absolute or from the adapter's folder.
        fingerprint: of that checkpoint, see `fingerprint`; empty if PEFT made the folder.
        step: updates that made it; 0 if that is not known.
        lora: of a LoRA; None for learned states.
    """

    base: str
    fingerprint: str = ""
    step: int = 0
    lora: LoraInfo | None = None


def fingerprint(model: Decoder) -> str:
    """32 hexadecimal digits of a model's weights, whatever file or folder they came from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if name == "lm_head.weight" and model.config.tie_embeddings:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_adapter(folder: str | Path, info: AdapterInfo, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter; each file under a temporary name, then renamed.

    Args:
        folder: made if it does not exist; other files in it are left alone.
        info: says what it is.
        tensors: states by their parameters' names in the decoder; those of a LoRA by their
            `retnet.hub.lora.peft_name`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    path = folder / (STATES if info.lora is None else WEIGHTS)
    write_atomic(path, lambda temporary: save_file(whole, temporary, metadata={"format": "pt"}))
    if info.lora is not None:
        write_lora_info(folder, info.lora)
    tuning = {
        "format": FORMAT,
        "method": "state" if info.lora is None else "lora",
        "base": info.base,
        "base_fingerprint": info.fingerprint,
        "step": info.step,
    }
    write_json(folder / TUNING, tuning)


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    folder = Path(folder)
    known = any((folder / name).exists() for name in (TUNING, CONFIG))
    return known and not (folder / "config.json").exists()


def base_folder(folder: str | Path) -> Path:
    """The checkpoint that an adapter says it belongs to.

    Raises:
        ValueError: it is not there, or the folder holds no adapter.
    """
    folder = Path(folder)
    info = read_info(folder)
    # PEFT's paths begin where the program was started; ours at the adapter, and move with it
    base = folder / info.base if (folder / TUNING).exists() else Path(info.base)
    if not info.base or not base.exists():
        raise ValueError(
            f'{folder} is an adapter of "{info.base}", and {base} does not exist; name the base: '
            f"retnet.load(BASE, adapter={str(folder)!r}), or BASE --adapter {folder}"
        )
    return base


def read_info(folder: str | Path) -> AdapterInfo:
    """What an adapter's JSON files say.

    Raises:
        ValueError: the folder holds no adapter, or one that this version cannot use.
    """
    folder = Path(folder)
    if not is_adapter(folder):
        raise ValueError(
            f"{folder} holds no adapter; give a folder with {TUNING}, of a run with [tune], or "
            f"with {CONFIG}, of PEFT"
        )
    if not (folder / TUNING).exists():
        lora = read_lora_info(folder)
        return AdapterInfo(base=lora.base, lora=lora)
    tuning = read_object(folder / TUNING)
    form, method = tuning.get("format"), tuning.get("method")
    if form != FORMAT or method not in ("lora", "state"):
        raise ValueError(
            f'{folder / TUNING} has format {form} and method "{method}"; this version reads format '
            f'{FORMAT} with "lora" or "state": install the version that wrote it'
        )
    return AdapterInfo(
        base=str(tuning.get("base", "")),
        fingerprint=str(tuning.get("base_fingerprint", "")),
        step=int(tuning.get("step", 0)),
        lora=read_lora_info(folder) if method == "lora" else None,
    )


def apply_adapter(model: Decoder, folder: str | Path) -> Decoder:
    """Change a model as an adapter says.

    Args:
        model: the adapter's base, with the weights of its file; it is used up.
        folder: the adapter.

    Returns:
        For a LoRA the model itself with other weights; for states a decoder that begins with
        them, and shares the model's weights.

    Raises:
        ValueError: the adapter belongs to another model, or is broken.
    """
    folder = Path(folder)
    info = read_info(folder)
    found = fingerprint(model) if info.fingerprint else ""
    if found != info.fingerprint:
        raise ValueError(
            f"{folder} belongs to a model with fingerprint {info.fingerprint[:8]}, that of "
            f'"{info.base}" when it was trained, and this model has {found[:8]}; give the '
            "checkpoint that it was trained on: an adapter fits no other"
        )
    if info.lora is None:
        return _with_states(model, folder)
    merge_lora(model, read_lora(folder), info.lora.scale, folder)
    return model


def relative_base(base: Path, folder: Path) -> str:
    """How an adapter in `folder` names its base: relative, so that both may move together."""
    try:
        return Path(os.path.relpath(base.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return str(base.resolve())


def _with_states(model: Decoder, folder: Path) -> Decoder:
    states, tuned = read_tensors(folder / STATES), add_initial_state(model)
    refuse_other_tensors(
        initial_tensors(tuned),
        states,
        f"{folder / STATES} does not fit its base",
        "give the checkpoint that it was trained on",
    )
    tuned.load_state_dict(states, strict=False)
    return tuned
