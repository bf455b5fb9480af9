"""Tensor names: in files as `Decoder` has them, in memory with the prefix that tools expect."""

import re
from typing import Any

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

BODY = "(embed_tokens|embed_norm|layers|norm)"
"""Modules of a `Decoder` that stand under `model.` here; only the head does not."""


def register_names(class_name: str) -> None:
    """Have `from_pretrained` add the prefix for a class, and `save_pretrained` take it away.

    By class, not by model type: with the latter PEFT would rename tensors of adapters, too.
    """
    renaming = WeightRenaming(rf"^{BODY}\.", r"model\.\1\.")
    register_checkpoint_conversion_mapping(class_name, [renaming], overwrite=True)


def add_prefix(_module: Any, state_dict: dict[str, Any], prefix: str, *_args: Any) -> None:
    """Rename a file's tensors in place, as a hook of `load_state_dict`.

    The Trainer resumes with this function, and would ignore all names that it does not know.
    """
    start = re.compile(rf"{re.escape(prefix)}(?={BODY}\.)")
    for name in list(state_dict):
        if found := start.match(name):
            state_dict[f"{prefix}model.{name[found.end() :]}"] = state_dict.pop(name)


__all__ = ["add_prefix", "register_names"]
