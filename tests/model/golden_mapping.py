"""The weights of public RetNet implementations in our decoder, converted by the library itself."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from golden_files import FOLDER
from retnet.hub import load_checkpoint
from retnet.hub.foreign import convert
from retnet.model import Decoder

TORCHSCALE = ("torchscale_base", "torchscale_options", "torchscale_deepnorm", "torchscale_v1")
SYNCDOTH = ("syncdoth_glu", "syncdoth_ffn")
FLA = ("fla_retnet_gqa", "fla_retnet_mha", "fla_retnet_nogate")

UNSCALED = {"no_scale_embedding": "true"}
ANSWERS: dict[str, dict[str, str]] = {
    "torchscale_base": UNSCALED,
    "torchscale_deepnorm": UNSCALED,
    "torchscale_v1": UNSCALED | {"head_norm_eps": "1e-5"},
    "syncdoth_ffn": UNSCALED,
}
"""What the configs in these files leave out, because it was the default of the class."""


def decoder(name: str, score_norm: str, dtype: torch.dtype) -> Decoder:
    """Our decoder with the weights of a golden file.

    Args:
        name: of the file.
        score_norm: of the official ones, "scaled" or "torchscale"; others come from the format.
        dtype: of the parameters.
    """
    answers = ANSWERS.get(name, {}) | ({} if name in FLA else {"score_norm": score_norm})
    with TemporaryDirectory() as folder:
        target = Path(folder) / "converted"
        convert(FOLDER / f"{name}.safetensors", target, answers=answers)
        return load_checkpoint(target)[0].to(dtype)
