"""One checkpoint folder in Hugging Face layout: written whole or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from retnet.data import Tokenizer
from retnet.hub.adapter import apply_adapter, base_folder, is_adapter
from retnet.hub.files import (
    read_json,
    read_tensors,
    refuse_other_tensors,
    write_atomic,
    write_json,
)
from retnet.hub.structure import from_dict, to_dict
from retnet.model import Decoder, DecoderConfig

MODEL_TYPE = "retnet_decoder"
"""Our own, so that another package that registers `retnet` cannot clash."""

CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"


def save_checkpoint(folder: str | Path, model: Decoder, tokenizer: Tokenizer | None = None) -> None:
    """Write config, weights and tokenizer; each file under a temporary name, then renamed.

    Args:
        folder: made if it does not exist; other files in it are left alone.
        model: its parameters are saved in their own dtype; a tied head is not saved twice.
        tokenizer: left out if None.
    """
    tensors = {name: t.detach() for name, t in model.state_dict().items()}
    if model.config.tie_embeddings:
        del tensors["lm_head.weight"]
    save_weights(folder, model.config, tensors, tokenizer)


def save_weights(
    folder: str | Path,
    config: DecoderConfig,
    tensors: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer | None = None,
) -> None:
    """`save_checkpoint` for the named parameters of a model that is elsewhere; a tied head once."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.contiguous().cpu() for name, t in tensors.items()}
    # transformers refuses safetensors files without this entry
    write_atomic(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    write_description(folder, config, tensors["embed_tokens.weight"].dtype, tokenizer)


def write_description(
    folder: Path, config: DecoderConfig, dtype: torch.dtype, tokenizer: Tokenizer | None
) -> None:
    """Write what stands beside the weights of `dtype`: config and tokenizer."""
    described = {
        "model_type": MODEL_TYPE,
        "architectures": ["RetNetDecoderForCausalLM"],
        "dtype": str(dtype).removeprefix("torch."),
        **({"bos_token_id": tokenizer.bos_id} if tokenizer is not None else {}),
        "decoder": to_dict(config),
    }
    write_json(folder / CONFIG, described)
    if tokenizer is not None:
        tokenizer.save(folder)
        # for transformers: BOS ends a text, since a document ends where the next one begins
        ends = tokenizer.end_ids
        generation = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
            "pad_token_id": ends[0],
        }
        write_json(folder / GENERATION, generation)


def load_checkpoint(
    folder: str | Path,
    *,
    adapter: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[Decoder, Tokenizer | None]:
    """Read a folder that `save_checkpoint` wrote, or an adapter and the checkpoint it belongs to.

    Args:
        folder: the checkpoint; or an adapter, whose base is found where it says.
        adapter: folder of a LoRA, which is merged into the weights, or of learned states; needed
            only if the adapter does not find its base.
        device: where the model goes.
        dtype: of the parameters; None keeps the file's.

    Returns:
        The model in evaluation mode, and its tokenizer if the folder has one.

    Raises:
        ValueError: a file is missing or broken, the folder holds another kind of model,
            tensors are missing, unknown or of another shape, the tokenizer has ids that the
            model does not know, or the adapter is not this model's.
    """
    folder = Path(folder)
    if is_adapter(folder):
        if adapter is not None:
            raise ValueError(
                f"{folder} is an adapter itself; give its base, the folder of a whole model, with "
                f"the adapter {adapter}"
            )
        folder, adapter = base_folder(folder), folder
    model = _load_model(folder)
    if adapter is not None:
        model = apply_adapter(model, adapter)
    tokenizer = Tokenizer.load(folder) if (folder / "tokenizer.json").exists() else None
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{folder} has a tokenizer of {tokenizer.vocab_size} ids, and its model reads "
            f"{model.config.vocab_size}; bring back the tokenizer that the model was trained with"
        )
    return model.to(device=device, dtype=dtype).eval(), tokenizer


def _load_model(folder: Path) -> Decoder:
    config = read_config(folder)
    with torch.device("meta"):
        model = Decoder(config)
    tensors = read_tensors(folder / WEIGHTS)
    if config.tie_embeddings and "embed_tokens.weight" in tensors:
        tensors["lm_head.weight"] = tensors["embed_tokens.weight"]
    refuse_other_tensors(
        model.state_dict(),
        tensors,
        f"{folder}/{WEIGHTS} does not fit its {CONFIG}",
        "the two files must come from the same save",
    )
    model.load_state_dict(tensors, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval()


def load(folder: str | Path, **kwargs: Any) -> tuple[Decoder, Tokenizer]:
    """`load_checkpoint` for folders that must have a tokenizer.

    Example:
        >>> model, tokenizer = load("runs/demo")  # doctest: +SKIP
        >>> model, tokenizer = load("runs/demo", adapter="runs/letters")  # doctest: +SKIP
    """
    model, tokenizer = load_checkpoint(folder, **kwargs)
    if tokenizer is None:
        raise ValueError(
            f"{folder} has no tokenizer.json; copy the tokenizer there, or do without: "
            "retnet generate --ids, retnet.hub.load_checkpoint"
        )
    return model, tokenizer


def read_config(folder: Path) -> DecoderConfig:
    """The decoder's config in a checkpoint folder.

    Raises:
        ValueError: the file is missing or broken, or describes another kind of model.
    """
    path = folder / CONFIG
    try:
        data = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{folder} has no {CONFIG}; give a checkpoint folder, such as one that "
            "`retnet train` or `retnet demo` wrote"
        ) from None
    found = data.get("model_type") if isinstance(data, dict) else None
    if found != MODEL_TYPE:
        raise ValueError(
            f'{path} has model_type "{found}"; it must be "{MODEL_TYPE}": give a folder that '
            "`retnet train` wrote"
        )
    if not isinstance(data.get("decoder"), dict):
        raise ValueError(f'{path} has no table "decoder"; restore it from a backup')
    return from_dict(DecoderConfig, data["decoder"], "decoder")


__all__ = [
    "load",
    "load_checkpoint",
    "read_config",
    "save_checkpoint",
    "save_weights",
    "write_atomic",
]
