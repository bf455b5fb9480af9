"""The Trainer and PEFT on the adapter: a few steps each, and what they leave behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainingArguments

from hf.shared import WORDS, load
from model.small import tokens
from retnet.data import Tokenizer
from retnet.hf import RetNetDecoderForCausalLM
from retnet.hub import load_checkpoint

# PEFT and the Trainer of one version ask for what the next version has renamed.

PROJECTIONS = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def rows(tokenizer: Tokenizer) -> list[dict[str, Tensor]]:
    """Sixteen places of the same text."""
    ids = torch.tensor(tokenizer.encode(WORDS))
    places = [ids[start : start + 12] for start in range(0, 16)]
    return [{"input_ids": place, "labels": place} for place in places]


def trainer(model: Any, rows: list, out: Path, steps: int, **changes: Any) -> Trainer:
    how = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_steps=2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=1,
        **changes,
    )
    data: Any = rows
    return Trainer(model=model, args=how, train_dataset=data, eval_dataset=data)


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_the_trainer_learns_saves_and_resumes_bit_for_bit(
    folder: Path, rows: list, tmp_path: Path
) -> None:
    models = [load(folder), load(folder)]
    whole = trainer(models[0], rows, tmp_path / "whole", 4)
    before = whole.evaluate()["eval_loss"]
    whole.train()
    assert whole.evaluate()["eval_loss"] < before
    resumed = trainer(models[1], rows, tmp_path / "whole", 4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses(resumed) == losses(whole)
    trained = models[0].state_dict()
    for name, tensor in models[1].state_dict().items():
        assert torch.equal(tensor, trained[name]), name
    own, _ = load_checkpoint(tmp_path / "whole" / "checkpoint-4")
    assert torch.equal(own.embed_tokens.weight, trained["model.embed_tokens.weight"])


def test_gradient_checkpointing_of_the_trainer_is_the_decoders(
    folder: Path, rows: list, tmp_path: Path
) -> None:
    found = []
    for again in (False, True):
        model = load(folder)
        run = trainer(model, rows, tmp_path / str(again), 1, gradient_checkpointing=again)
        run.train()
        assert model.model.gradient_checkpointing == again
        found.append(losses(run))
    assert found[0] == found[1]


def tuned(folder: Path, targets: Any) -> PeftModel:
    base = load(folder)
    return get_peft_model(base, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))


@pytest.mark.parametrize("targets", [PROJECTIONS, "all-linear"], ids=str)
def test_lora_learns_saves_loads_and_merges(
    targets: Any, folder: Path, rows: list, tmp_path: Path
) -> None:
    model = tuned(folder, targets)
    run = trainer(model, rows, tmp_path / "run", 2)
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < before
    model.eval().save_pretrained(str(tmp_path / "adapter"))
    names = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    stem = "base_model.model.model.layers.0.branches.0"
    assert f"{stem}.q_proj.lora_A.weight" in names
    assert (f"{stem}.o_proj.lora_A.weight" in names) == (targets == "all-linear")
    assert not any("lm_head" in name for name in names)

    ids, how = tokens(2, 5), {"do_sample": False, "max_new_tokens": 5, "eos_token_id": None}
    base = load(folder)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        want = model(input_ids=ids).logits
        assert torch.equal(loaded(input_ids=ids).logits, want)
    written = loaded.generate(input_ids=ids, **how)
    assert written.equal(model.generate(input_ids=ids, **how))

    merged = loaded.merge_and_unload()
    assert isinstance(merged, RetNetDecoderForCausalLM)
    merged.save_pretrained(tmp_path / "merged")
    own, _ = load_checkpoint(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(own(ids)[0], want, rtol=1e-4, atol=1e-4)
        plain = load_checkpoint(folder)[0](ids)[0]
    assert (plain - want).abs().max() > 1e-3  # or the above would show nothing


def test_training_with_lora_and_checkpointing_reaches_the_adapter(
    folder: Path, rows: list, tmp_path: Path
) -> None:
    model = tuned(folder, PROJECTIONS)
    run = trainer(model, rows, tmp_path, 2, gradient_checkpointing=True)
    run.train()
    grown = [p.abs().max() for n, p in model.named_parameters() if "lora_B" in n]
    assert len(grown) == 4
    assert min(grown) > 0
