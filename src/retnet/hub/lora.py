"""LoRA in PEFT's folders: what they say, how tensors are named there, and merging without PEFT."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from retnet.hub.files import read_object, read_tensors, refuse_other_tensors, write_json
from retnet.model import Decoder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

PEFT_PREFIX = "base_model.model."
"""PEFT's, before the names of the model that it wraps."""

HF_PREFIX = "model."
"""The transformers model's, before the names of our decoder; its head has none."""

PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""What a PEFT config says, or leaves out, of a LoRA that is nothing but `scale B A`."""


@dataclass(frozen=True, kw_only=True)
class LoraInfo:
    """What a PEFT folder says of a LoRA besides its tensors.

    Attributes:
        rank: of the update of each matrix.
        alpha: the update is multiplied by alpha / rank.
        targets: how the names of the layers that have one end.
        base: the model that `AutoPeftModel` of PEFT loads, as seen from where it is called.
        rank_stabilized: it is multiplied by alpha / sqrt(rank) instead (arXiv:2312.03732).
    """

    rank: int
    alpha: int | float
    targets: tuple[str, ...] = ()
    base: str = ""
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def peft_name(parameter: str) -> str:
    """Name in a PEFT folder of a parameter that PEFT has put into a decoder."""
    return PEFT_PREFIX + HF_PREFIX + parameter.replace(".default.", ".")


def write_lora_info(folder: Path, lora: LoraInfo) -> None:
    """Write the JSON file of a PEFT folder; PEFT has defaults for what it does not say."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lora.base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "use_rslora": lora.rank_stabilized,
        "target_modules": sorted(lora.targets),
        "bias": "none",
        "inference_mode": True,
    }
    write_json(folder / CONFIG, config)


def read_lora_info(folder: Path) -> LoraInfo:
    """Read the JSON file of a PEFT folder.

    Raises:
        ValueError: it is missing or broken, or asks for more than plain LoRA.
    """
    config = read_object(folder / CONFIG)
    for key, value in PLAIN.items():
        if (config.get(key) or value) != value:
            raise ValueError(
                f"{folder / CONFIG} has {key} = {config[key]!r}; without PEFT only plain LoRA "
                f"can be read, with {key} = {value!r}: merge it with PEFT's merge_and_unload and "
                "save_pretrained, and load that folder"
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ValueError(
            f"{folder / CONFIG} has r = {rank!r} and lora_alpha = {alpha!r}; they must be "
            "numbers above 0: restore it from a backup"
        )
    targets = config.get("target_modules") or ()
    return LoraInfo(
        rank=rank,
        alpha=alpha,
        targets=(targets,) if isinstance(targets, str) else tuple(targets),
        base=str(config.get("base_model_name_or_path") or ""),
        rank_stabilized=bool(config.get("use_rslora")),
    )


def read_lora(folder: Path) -> dict[str, Tensor]:
    """A PEFT folder's tensors, under their layers' names in the decoder.

    Raises:
        ValueError: the file is missing or damaged.
    """
    tensors = read_tensors(folder / WEIGHTS)
    return {n.removeprefix(PEFT_PREFIX).removeprefix(HF_PREFIX): t for n, t in tensors.items()}


@torch.no_grad()
def merge_lora(model: Decoder, tensors: dict[str, Tensor], scale: float, folder: Path) -> None:
    """Add `scale B A` to the model's weights, computed in float32 or better.

    Args:
        model: is changed.
        tensors: `….lora_A.weight` (rank, in) and `….lora_B.weight` (out, rank) of some layers.
        scale: alpha / rank.
        folder: where they came from, for messages.

    Raises:
        ValueError: a tensor belongs to no matrix of the model (a tied head is the embedding's),
            or has another shape.
    """
    weights = {n: p for n, p in model.named_parameters() if n.endswith(".weight") and p.ndim == 2}
    layers = sorted({name.rpartition(".lora_")[0] for name in tensors})
    want = {}
    for layer in layers:
        weight, a = weights.get(f"{layer}.weight"), tensors.get(f"{layer}.lora_A.weight")
        if weight is not None and a is not None:  # otherwise its tensors are unknown
            want[f"{layer}.lora_A.weight"] = weight.new_empty(len(a), weight.shape[1])
            want[f"{layer}.lora_B.weight"] = weight.new_empty(weight.shape[0], len(a))
    remedy = "give the checkpoint that it was trained on"
    refuse_other_tensors(want, tensors, f"{folder / WEIGHTS} does not fit its base", remedy)
    for layer in layers:
        weight = weights[f"{layer}.weight"]
        exact = torch.promote_types(weight.dtype, torch.float32)
        a, b = (tensors[f"{layer}.lora_{x}.weight"].to(weight.device, exact) for x in "AB")
        weight.copy_(weight.to(exact) + scale * (b @ a))
