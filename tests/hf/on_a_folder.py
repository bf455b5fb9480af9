"""Use a folder that `retnet train` or `retnet demo` wrote as `transformers` and PEFT users do.

    python tests/hf/on_a_folder.py runs/demo        # or: make hf FOLDER=runs/demo

Prints a line for each thing done, and fails at the first that is not as it should be.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)

import retnet
import retnet.hf

PROMPTS = ["def ", "import os\n\n\nclass Reader:"]
ROW = 64


def logits_are_ours(folder: str, work: Path) -> str:
    model, tokenizer = _read(folder)
    own, _ = retnet.load(folder)
    ids = tokenizer(PROMPTS[1], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, own(ids)[0])
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    back, _ = retnet.load(work)
    assert all(torch.equal(back.state_dict()[name], t) for name, t in own.state_dict().items())
    return "equal to retnet's to the bit; save_pretrained and back: every tensor equal"


def generate(folder: str, _: Path) -> str:
    model, tokenizer = _read(folder)
    tokenizer.padding_side = "left"
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    how: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    together = model.generate(**batch, **how)[:, -12:]
    for row, prompt in zip(together, PROMPTS, strict=True):
        alone = model.generate(**tokenizer(prompt, return_tensors="pt"), **how)[0, -12:]
        assert torch.equal(row, alone)
    in_chunks = model.generate(**batch, **how, prefill_chunk_size=4)[:, -12:]
    assert torch.equal(in_chunks, together)
    beams = model.generate(**batch, **how, num_beams=3)
    torch.manual_seed(0)
    sampled = model.generate(**batch, max_new_tokens=12, do_sample=True, top_p=0.9)
    assert len(beams) == len(sampled) == 2
    return "left-padded batch, each prompt alone and chunked prefill agree; beams, sampling run"


def write(folder: str, _: Path) -> str:
    texts = pipeline("text-generation", model=folder)(
        PROMPTS, batch_size=2, max_new_tokens=12, do_sample=False
    )
    return " | ".join(repr(text[0]["generated_text"]) for text in texts)


def train(folder: str, work: Path) -> str:
    model, tokenizer = _read(folder)
    rows = _rows(tokenizer)
    trainer = Trainer(
        model,
        _arguments(work, 6),
        train_dataset=rows,
        eval_dataset=rows.select(range(8)),
        processing_class=tokenizer,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before
    again, _ = _read(folder)
    Trainer(again, _arguments(work, 6), train_dataset=rows).train(
        resume_from_checkpoint=str(work / "checkpoint-3")
    )
    pairs = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    apart = max((a - b).abs().max().item() for a, b in pairs)
    assert apart == 0
    retnet.load(work / "checkpoint-6")
    return f"loss {before:.3f} to {after:.3f} in 6 steps; resumed from step 3: the same weights"


def tune(folder: str, work: Path) -> str:
    base, tokenizer = _read(folder)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(base, lora)
    Trainer(tuned, _arguments(work / "run", 6), train_dataset=_rows(tokenizer)).train()
    tuned.save_pretrained(str(work / "lora"))
    fresh, _ = _read(folder)
    again = PeftModel.from_pretrained(fresh, str(work / "lora")).eval()
    ids = tokenizer(PROMPTS[1], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        want = tuned.eval()(ids).logits
        assert torch.equal(again(ids).logits, want)
        merged = again.merge_and_unload()(ids).logits
        ours, _ = retnet.load(folder, adapter=work / "lora")
        apart = max((x - want).abs().max().item() for x in (merged, ours(ids)[0]))
    assert apart < 1e-3
    return f"saved and loaded: equal; merged, and by retnet.load: logits within {apart:.1e}"


CHECKS: dict[str, Callable[[str, Path], str]] = {
    "AutoModelForCausalLM": logits_are_ours,
    "generate": generate,
    "pipeline": write,
    "Trainer": train,
    "PEFT": tune,
}


def main(folder: str) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, {folder}")
    for name, check in CHECKS.items():
        with tempfile.TemporaryDirectory() as work:
            print(f"  {name}: {check(folder, Path(work))}", flush=True)


def _read(folder: str) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def _rows(tokenizer: Any) -> Dataset:
    """This file's own text: there is always one."""
    ids = tokenizer(Path(__file__).read_text(encoding="utf-8"))["input_ids"]
    rows = [ids[i : i + ROW] for i in range(0, len(ids) - ROW, ROW)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def _arguments(work: Path, steps: int) -> TrainingArguments:
    return TrainingArguments(
        str(work),
        max_steps=steps,
        save_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        log_level="error",
        logging_strategy="no",
        seed=1,
    )


if __name__ == "__main__":
    main(sys.argv[1])
