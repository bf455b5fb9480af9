"""Checkpoints of other programs, converted: models of `transformers` like any of ours."""

from pathlib import Path

import pytest
import torch

from golden_files import FOLDER, golden
from hf.shared import load
from retnet.hub.foreign import convert

OUTPUTS = {
    "torchscale_options": "logits_recurrent",
    "syncdoth_glu": "logits_recurrent",
    "fla_retnet_gqa": "logits",
    "rwkv4": "logits_hf",
    "llama_gqa": "logits",
    "mistral_window": "logits",
    "mpt_alibi": "logits",
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_converted_model_loads_and_generates(name: str, tmp_path: Path) -> None:
    said = {"model_type": "llama"} if name.startswith("llama") else {}
    convert(FOLDER / f"{name}.safetensors", tmp_path / "ours", answers=said)
    model, file = load(tmp_path / "ours"), golden(name)
    with torch.no_grad():
        logits = model(file.tokens()).logits
    file.assert_agrees(logits, OUTPUTS[name])
    written = model.generate(file.tokens()[:, :5], max_new_tokens=4, do_sample=False)
    assert written.shape == (2, 9)
