"""What the kill test compares; the test itself runs with every other bench."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from retnet.bench.kills import difference


def make_run(folder: Path, *, loss: float = 2.0, lines: int = 2, seconds: float = 1.0) -> Path:
    log = [
        {"step": step, "loss": loss, "seconds": seconds * step, "mfu": 0.1 * seconds}
        for step in range(1, lines + 1)
    ]
    step = folder / "trainer/step-20"
    for name in ("model", "state"):
        (step / name).mkdir(parents=True)
        save_file({"w": torch.arange(4.0)}, step / name / "one.safetensors")
    (folder / "trainer/step-9").mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return folder


def test_equal_runs_differ_in_nothing_but_the_clock(tmp_path: Path) -> None:
    ours, theirs = make_run(tmp_path / "a"), make_run(tmp_path / "b", seconds=3.0)
    assert difference(ours, theirs) == ""


def test_another_loss_is_shown(tmp_path: Path) -> None:
    ours, theirs = make_run(tmp_path / "a"), make_run(tmp_path / "b", loss=2.0000001)
    assert '"loss": 2.0000001' in difference(ours, theirs)


def test_a_shorter_log_is_shown(tmp_path: Path) -> None:
    ours, theirs = make_run(tmp_path / "a"), make_run(tmp_path / "b", lines=1)
    assert difference(ours, theirs) == "metrics.jsonl has 1 lines for 2"


@pytest.mark.parametrize("name", ["model", "state"])
def test_one_other_bit_is_shown(tmp_path: Path, name: str) -> None:
    ours, theirs = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    tensor = torch.arange(4.0)
    tensor[2] = tensor[2].nextafter(torch.tensor(9.0))
    save_file({"w": tensor}, theirs / f"trainer/step-20/{name}/one.safetensors")
    assert difference(ours, theirs) == f"{name}: w differs"
