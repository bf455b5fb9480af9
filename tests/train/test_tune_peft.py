"""LoRA adapters cross between our runs and PEFT on the transformers model, both ways."""

import importlib
from pathlib import Path

import pytest
import torch

import retnet
from retnet.data import Tokenizer
from retnet.hub import from_dict, save_checkpoint
from retnet.model import Decoder, DecoderConfig
from retnet.train.tune import TuneSection, learned_parameters, save_learned, starting_model

transformers = pytest.importorskip("transformers", reason="pip install 'retnet[peft]'")
peft = pytest.importorskip("peft", reason="pip install 'retnet[peft]'")
importlib.import_module("retnet.hf")  # tells transformers of our models

# PEFT 0.21 asks transformers 5.23 in an old way.

LAYER = {
    "repeat": 2,
    "mixer": {"name": "retention", "num_heads": 2},
    "channel": {"name": "glu", "width": 24},
}
CONFIG = from_dict(DecoderConfig, {"d_model": 16, "layers": [LAYER], "vocab_size": 257})
TOKENS = torch.arange(24).view(2, 12)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "base", Decoder(CONFIG), Tokenizer.bytes())
    return tmp_path / "base"


def test_peft_loads_what_a_run_saved(base: Path) -> None:
    folder = base.parent / "run"
    tune = TuneSection(base="base", method="lora", rank=3, alpha=12, targets=("all-linear",))
    model, info = starting_model(tune, CONFIG, root=base.parent, folder=folder)
    learned = learned_parameters(model)
    with torch.no_grad():
        for parameter in learned.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_learned(folder, CONFIG, learned, info, Tokenizer.bytes())
    wrapped = transformers.AutoModelForCausalLM.from_pretrained(base)
    wrapped = peft.PeftModel.from_pretrained(wrapped, folder)
    ours, _ = retnet.load(folder)
    for peft_model in (wrapped, peft.AutoPeftModelForCausalLM.from_pretrained(folder)):
        got = peft_model.eval()(TOKENS).logits
        torch.testing.assert_close(got, ours(TOKENS)[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours(TOKENS)[0], retnet.load(base)[0](TOKENS)[0], atol=1e-2)


def test_a_run_s_format_is_read_from_peft_s_own_folders(base: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(
        r=2, lora_alpha=5, target_modules="all-linear", task_type="CAUSAL_LM", use_rslora=True
    )
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(base.parent / "peft")
    got = retnet.load(base.parent / "peft")[0](TOKENS)[0]
    torch.testing.assert_close(got, model.eval()(TOKENS).logits, rtol=1e-4, atol=1e-4)
