from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from golden_files import FOLDER
from retnet.cli.status import FAILED, OK
from retnet.hub import load_checkpoint
from retnet.hub.foreign import FORMATS, convert

Run = Callable[..., tuple[int, str, str]]

FOREIGN = FOLDER / "torchscale_base.safetensors"
ANSWER = ("--set", "no_scale_embedding=true")


def test_a_foreign_checkpoint_becomes_ours_and_writes_ids(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("convert", FOREIGN, tmp_path / "ours", *ANSWER)
    assert status == OK
    for part in (
        "torchscale, current layout",
        "89,520 parameters, float32",
        "layers.*.ffn.gate.weight",
        "tokenizer: none; give one with --tokenizer",
    ):
        assert part in out
    words = ("--prompt", "5 17 3", "--max-tokens", 8, "--temperature", 0)
    status, out, _ = run("generate", tmp_path / "ours", "--ids", *words)
    assert status == OK
    ids = [int(word) for word in out.split()]
    assert len(ids) == 8
    assert run("generate", tmp_path / "ours", "--ids", *words)[1] == out
    status, _, err = run("generate", tmp_path / "ours", *words)
    assert status == FAILED
    assert "has no tokenizer.json; copy the tokenizer there, or do without" in err


def test_ours_becomes_foreign(run: Run, tmp_path: Path) -> None:
    convert(FOREIGN, tmp_path / "ours", answers={"no_scale_embedding": "true"})
    status, out, _ = run("convert", tmp_path / "ours", tmp_path / "back", "--to", "torchscale")
    assert status == OK
    assert "retnet → torchscale" in out
    got, want = load_file(tmp_path / "back" / "model.safetensors"), load_file(FOREIGN)
    assert got.keys() == want.keys()


def test_what_is_missing_is_listed_and_the_status_says_so(run: Run, tmp_path: Path) -> None:
    status, out, err = run("convert", FOREIGN, tmp_path / "ours")
    assert (status, out) == (FAILED, "")
    assert "  --set no_scale_embedding=...   true (RetNetConfig's default) or false" in err
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("word", ["activation_fn", "=swish", "activation_fn="])
def test_answers_have_a_name_and_a_value(run: Run, tmp_path: Path, word: str) -> None:
    status, _, err = run("convert", FOREIGN, tmp_path / "ours", "--set", word)
    assert status == FAILED
    assert f"--set {word} must be NAME=VALUE" in err


def test_dtype_tokenizer_and_force_reach_the_library(run: Run, tmp_path: Path) -> None:
    words = ("convert", FOREIGN, tmp_path / "ours", *ANSWER)
    assert run(*words)[0] == OK
    status, _, err = run(*words)
    assert status == FAILED
    assert "--force" in err
    status, out, _ = run(*words, "--force", "--dtype", "bfloat16")
    assert status == OK
    assert "bfloat16" in out
    assert str(load_checkpoint(tmp_path / "ours")[0].lm_head.weight.dtype) == "torch.bfloat16"
    _, _, err = run(*words, "--force", "--tokenizer", "bytes")
    assert "(bytes as tokens) has 257 ids" in err


def test_formats_are_listed(run: Run) -> None:
    status, out, _ = run("convert", "--list")
    assert status == OK
    for name in FORMATS:
        assert f" {name} " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt", "def"), "must be token ids"),
        ((), "must be token ids"),
        (("--prompt", "5 300"), "--prompt has id 300, and the model knows 0 to 256"),
        (("--prompt", "5", "--num-samples", 2), "--ids goes with neither"),
        (("--prompt", "5", "--stop", "x"), "--ids goes with neither"),
    ],
)
def test_ids_are_checked(run: Run, checkpoint: Path, words: tuple, message: str) -> None:
    status, _, err = run("generate", checkpoint, "--ids", *words)
    assert status == FAILED
    assert message in err
