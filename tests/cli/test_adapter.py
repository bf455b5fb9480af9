"""`--adapter`: every command that reads a model reads a fine-tuned one, too."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retnet.cli.status import FAILED, OK
from retnet.hub import load_checkpoint
from retnet.hub.adapter import AdapterInfo, fingerprint, relative_base, save_adapter
from retnet.model.initial_state import add_initial_state, initial_tensors

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def adapter(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "adapter"
    base, _ = load_checkpoint(checkpoint)
    torch.manual_seed(2)
    states = {
        n: 9 * torch.randn_like(S) for n, S in initial_tensors(add_initial_state(base)).items()
    }
    place = relative_base(checkpoint, folder)
    save_adapter(folder, AdapterInfo(base=place, fingerprint=fingerprint(base)), states)
    return folder


def test_generate_begins_with_the_adapters_state(run: Run, checkpoint: Path, adapter: Path) -> None:
    words = ("--prompt", "def ", "--max-tokens", 20, "--temperature", 0)
    status, tuned, _ = run("generate", checkpoint, "--adapter", adapter, *words)
    assert status == OK
    assert tuned == run("generate", adapter, *words)[1]
    assert tuned != run("generate", checkpoint, *words)[1]


def test_evaluate_scores_with_it(run: Run, checkpoint: Path, adapter: Path) -> None:
    text = checkpoint.parent / "text.txt"
    text.write_text("the state of a retention layer\n", encoding="utf-8")
    status, tuned, _ = run("evaluate", checkpoint, text, "--adapter", adapter)
    assert status == OK
    assert tuned == run("evaluate", adapter, text)[1]
    assert tuned != run("evaluate", checkpoint, text)[1]


def test_chat_answers_with_it(
    run: Run, checkpoint: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--max-tokens", 20, "--temperature", 0)

    def chat(*model: object) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("def \n/quit\n"))
        return run("chat", *model, *words)[1]

    assert chat(checkpoint, "--adapter", adapter) == chat(adapter) != chat(checkpoint)


def test_a_folder_that_is_no_adapter_is_an_error(run: Run, checkpoint: Path) -> None:
    status, _, err = run("generate", checkpoint, "--adapter", checkpoint)
    assert status == FAILED
    assert "holds no adapter; give a folder with tuning.json" in " ".join(err.split())
