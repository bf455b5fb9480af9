"""Checkpoints of other programs, converted: models of `transformers` like any of ours."""

from pathlib import Path

import pytest
import torch

from golden_files import FOLDER, golden
from hf.shared import load
from retnet.hub.foreign import convert


@pytest.mark.parametrize("name", ["torchscale_options", "syncdoth_glu", "fla_retnet_gqa"])
def test_a_converted_retnet_loads_and_generates(name: str, tmp_path: Path) -> None:
    convert(FOLDER / f"{name}.safetensors", tmp_path / "ours")
    model, file = load(tmp_path / "ours"), golden(name)
    with torch.no_grad():
        logits = model(file.tokens()).logits
    file.assert_agrees(logits, "logits" if name.startswith("fla") else "logits_recurrent")
    written = model.generate(file.tokens()[:, :5], max_new_tokens=4, do_sample=False)
    assert written.shape == (2, 9)
