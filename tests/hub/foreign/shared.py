"""What tests of foreign checkpoints say often."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from golden_files import FOLDER
from model.golden_mapping import ANSWERS
from retnet.hub import load_checkpoint
from retnet.hub.foreign import convert
from retnet.model import Decoder


def answers_of(name: str, more: Mapping[str, Any]) -> dict[str, str]:
    """What a golden file's config leaves out, and more."""
    return ANSWERS.get(name, {}) | {key: str(value) for key, value in more.items()}


def converted(folder: Path, name: str, **answers: Any) -> Decoder:
    """A golden file, converted into `folder`/NAME and loaded."""
    target = folder / name
    convert(FOLDER / f"{name}.safetensors", target, answers=answers_of(name, answers))
    return load_checkpoint(target)[0]


def there_and_back(folder: Path, name: str, format_name: str, **answers: Any) -> None:
    """Fail unless a golden file comes back from our format to the bit; `answers` are for export."""
    source = FOLDER / f"{name}.safetensors"
    convert(source, folder / "ours", answers=answers_of(name, {}))
    again = {key: str(value) for key, value in answers.items()}
    convert(folder / "ours", folder / "theirs", to=format_name, answers=again)
    [file] = [path for path in (folder / "theirs").iterdir() if path.suffix != ".json"]
    same(read_weights(file), load_file(source))


def read_weights(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, weights_only=True)


def same(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    """Fail unless names, dtypes, shapes and bits are equal."""
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        assert tensor.dtype == want[name].dtype, name
        assert torch.equal(tensor, want[name]), name


def golden_weights(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors without a config, as a safetensors file or one of PyTorch's."""
    whole = {name: x.contiguous() for name, x in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(whole, path)
    else:
        torch.save(whole, path)
    return path
