"""Other people's programs on a folder of ours: the pipeline, and whatever `python -m` can start."""

import sys
from pathlib import Path

import pytest
from transformers import pipeline

from hf.shared import WORDS
from retnet.data import Tokenizer
from retnet.hf.__main__ import main
from retnet.model import Decoder, Sampling, generate


def test_the_pipeline_writes_what_we_write(
    folder: Path, own: Decoder, tokenizer: Tokenizer
) -> None:
    prompts = [WORDS[:30], WORDS[:9], WORDS[3:20]]
    greedy = Sampling(temperature=0.0)
    want = [
        done.text for [done] in generate(own, tokenizer, prompts, max_tokens=6, sampling=greedy)
    ]
    write = pipeline("text-generation", model=str(folder), device="cpu")
    how = {"do_sample": False, "max_new_tokens": 6, "return_full_text": False}
    assert write(prompts[0], **how)[0]["generated_text"] == want[0]
    for batch_size in (1, 3):
        found = write(prompts, batch_size=batch_size, **how)
        assert [texts[0]["generated_text"] for texts in found] == want


def test_the_pipeline_samples_several(folder: Path) -> None:
    write = pipeline("text-generation", model=str(folder), device="cpu")
    found = write(WORDS[:9], do_sample=True, max_new_tokens=6, num_return_sequences=3)
    assert len({entry["generated_text"] for entry in found}) == 3


@pytest.mark.parametrize("name", ["module", "file"])
def test_a_program_is_run_with_our_models_known(
    name: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = tmp_path / "reads_a_model.py"
    program.write_text(
        "import sys\n"
        "from transformers import AutoConfig\n"
        "print(type(AutoConfig.from_pretrained(sys.argv[1])).__name__, __name__)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["whatever"])
    word = "reads_a_model" if name == "module" else str(program)
    assert main([word, str(folder)]) == 0
    assert capsys.readouterr().out == "RetNetDecoderConfig __main__\n"


def test_a_command_is_found_by_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["whatever"])
    assert main(["retnet", "--version"]) == 0
    assert capsys.readouterr().out.startswith("retnet ")


def test_a_program_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["whatever"])
    assert main(["no_such_program"]) == 2
    assert '"no_such_program" is no command, module or .py file' in capsys.readouterr().err
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m retnet.hf PROGRAM")
