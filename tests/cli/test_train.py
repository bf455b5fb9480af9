from collections.abc import Callable
from pathlib import Path

import pytest

from retnet.cli.status import FAILED, INTERRUPTED, OK
from retnet.train import TrainResult

Run = Callable[..., tuple[int, str, str]]

CONFIG = """
[data]
train = ["text.txt"]
tokenizer = { kind = "bytes" }

[model]
d_model = 16
[[model.layers]]
mixer = { name = "retention", num_heads = 2 }

[train]
steps = 2
batch_size = 2
seq_len = 16
sample_tokens = 4
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("word after word\n" * 60, encoding="utf-8")
    Path("small.toml").write_text(CONFIG, encoding="utf-8")
    return Path("small.toml")


def test_training_leaves_a_checkpoint_that_other_commands_read(run: Run, config: Path) -> None:
    status, out, _ = run("train", config, "--train.steps", 3)
    assert status == OK
    assert "step 3/3" in out
    assert run("generate", "runs/small", "--max-tokens", 3)[0] == OK


def test_a_run_that_was_stopped_tells_the_shell(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = TrainResult(folder=Path("runs/small"), step=1, finished=False, metrics={})
    monkeypatch.setattr("retnet.train.train", lambda _: stopped)
    assert run("train", config)[0] == INTERRUPTED


def test_an_unknown_setting_in_the_file_names_the_nearest(run: Run, config: Path) -> None:
    config.write_text(CONFIG.replace("seq_len", "seq_length"), encoding="utf-8")
    status, _, err = run("train", config)
    assert status == FAILED
    assert err == "error: train.seq_length is not a known key; did you mean seq_len?\n"


def test_of_many_processes_only_the_first_says_what_is_wrong_with_the_file(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(config.read_text().replace("steps", "stepz"))
    said = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        status, out, err = run("train", str(config))
        assert status == FAILED
        said[rank] = out + err
    assert "steps" in said["0"]
    assert said["1"] == ""


def test_the_file_comes_first(run: Run) -> None:
    status, _, err = run("train", "--train.steps", "3")
    assert status == FAILED
    assert "--train.steps stands before the TOML file, which must come first" in err
