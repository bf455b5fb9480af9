"""One checkpoint folder in Hugging Face layout: written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file

from retnet.data import Tokenizer
from retnet.hub.structure import from_dict, to_dict
from retnet.model import Decoder, DecoderConfig

MODEL_TYPE = "retnet_decoder"
"""Our own, so that another package that registers `retnet` cannot clash."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_checkpoint(folder: str | Path, model: Decoder, tokenizer: Tokenizer | None = None) -> None:
    """Write config, weights and tokenizer; each file under a temporary name, then renamed.

    Args:
        folder: made if it does not exist; other files in it are left alone.
        model: its parameters are saved in their own dtype; a tied head is not saved twice.
        tokenizer: left out if None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().contiguous().cpu() for name, t in model.state_dict().items()}
    if model.config.tie_embeddings:
        del tensors["lm_head.weight"]
    # transformers refuses safetensors files without this entry
    write_atomic(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    config = {
        "model_type": MODEL_TYPE,
        "architectures": ["RetNetDecoderForCausalLM"],
        "dtype": str(model.embed_tokens.weight.dtype).removeprefix("torch."),
        **({"bos_token_id": tokenizer.bos_id} if tokenizer is not None else {}),
        "decoder": to_dict(model.config),
    }
    text = json.dumps(config, indent=2) + "\n"
    write_atomic(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    if tokenizer is not None:
        tokenizer.save(folder)


def load_checkpoint(
    folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> tuple[Decoder, Tokenizer | None]:
    """Read a folder that `save_checkpoint` wrote.

    Args:
        folder: the checkpoint.
        device: where the model goes.
        dtype: of the parameters; None keeps the file's.

    Returns:
        The model in evaluation mode, and its tokenizer if the folder has one.

    Raises:
        ValueError: a file is missing or broken, the folder holds another kind of model, or
            tensors are missing, unknown or of another shape.
    """
    folder = Path(folder)
    config = _read_config(folder)
    with torch.device("meta"):
        model = Decoder(config)
    tensors = _read_weights(folder / WEIGHTS)
    if config.tie_embeddings and "embed_tokens.weight" in tensors:
        tensors["lm_head.weight"] = tensors["embed_tokens.weight"]
    _check_tensors(model, tensors, folder)
    model.load_state_dict(tensors, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    tokenizer = Tokenizer.load(folder) if (folder / "tokenizer.json").exists() else None
    return model.to(device=device, dtype=dtype).eval(), tokenizer


def load(folder: str | Path, **kwargs: Any) -> tuple[Decoder, Tokenizer]:
    """`load_checkpoint` for folders that must have a tokenizer.

    Example:
        >>> model, tokenizer = load("runs/demo")  # doctest: +SKIP
    """
    model, tokenizer = load_checkpoint(folder, **kwargs)
    if tokenizer is None:
        raise ValueError(
            f"{folder} has no tokenizer.json; copy the tokenizer there, or read the model alone "
            "with retnet.hub.load_checkpoint"
        )
    return model, tokenizer


def write_atomic(path: Path, write: Any) -> None:
    """Call `write` on a temporary neighbour, flush it to disk, and rename it to `path`.

    A crash leaves the last good file, or none.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
    temporary.replace(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _read_config(folder: Path) -> DecoderConfig:
    path = folder / CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{folder} has no {CONFIG}; give a checkpoint folder, such as one that "
            "`retnet train` or `retnet demo` wrote"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}; restore it from a backup") from None
    found = data.get("model_type") if isinstance(data, dict) else None
    if found != MODEL_TYPE:
        raise ValueError(
            f'{path} has model_type "{found}"; it must be "{MODEL_TYPE}": give a folder that '
            "`retnet train` wrote"
        )
    if not isinstance(data.get("decoder"), dict):
        raise ValueError(f'{path} has no table "decoder"; restore it from a backup')
    return from_dict(DecoderConfig, data["decoder"], "decoder")


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        # copies: tensors of a file lie at odd addresses, where sums may round differently
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; the checkpoint is incomplete") from None
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}); restore it from a backup or train again"
        ) from None


def _check_tensors(model: Decoder, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    want = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    have = {name: tuple(t.shape) for name, t in tensors.items()}
    if want == have:
        return
    missing = sorted(want.keys() - have.keys())
    unknown = sorted(have.keys() - want.keys())
    shapes = [
        f"{n} {have[n]} for {want[n]}" for n in want.keys() & have.keys() if want[n] != have[n]
    ]
    raise ValueError(
        f"{folder}/{WEIGHTS} does not fit its {CONFIG}: "
        f"missing {missing[:3]}, unknown {unknown[:3]}, other shapes {sorted(shapes)[:3]}; "
        "the two files must come from the same save"
    )


__all__ = ["load", "load_checkpoint", "save_checkpoint", "write_atomic"]
