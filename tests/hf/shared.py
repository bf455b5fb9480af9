"""What tests of the adapter say often, with the types that the Auto classes do not tell."""

from pathlib import Path
from typing import Any, cast

from transformers import AutoModel, AutoModelForCausalLM

from retnet.hf import RetNetDecoderForCausalLM, RetNetDecoderModel

WORDS = "the cat sat on the mat. the dog sat on the log. " * 8


def load(folder: Path, **kwargs: Any) -> RetNetDecoderForCausalLM:
    return cast(Any, AutoModelForCausalLM.from_pretrained(folder, **kwargs))


def load_body(folder: Path, **kwargs: Any) -> RetNetDecoderModel:
    return cast(Any, AutoModel.from_pretrained(folder, **kwargs))


def load_telling(
    folder: Path, auto: Any = AutoModelForCausalLM
) -> tuple[RetNetDecoderForCausalLM, dict[str, Any]]:
    """The model, and what was missing from the file or unknown in it."""
    return auto.from_pretrained(folder, output_loading_info=True)
