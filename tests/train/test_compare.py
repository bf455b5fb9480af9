"""Runs written by hand: settings, a log, and the head of a weight file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from retnet.train.compare import differences, find_runs, rank_runs, read_run

TRAINED = [
    {"step": 1, "tokens": 10, "loss": 5.0, "tokens_per_s": 90.0, "mfu": 0.1},
    {"step": 5, "tokens": 50, "loss": 4.0, "tokens_per_s": 100.0, "mfu": 0.3},
    {"step": 10, "tokens": 100, "loss": 3.0, "tokens_per_s": None, "mfu": None},
]


def write_run(
    folder: Path,
    settings: str = "",
    bits: float | None = None,
    lines: list[dict[str, Any]] = TRAINED,
) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text(f'run.dir = "{folder.name}"\ntrain.steps = 10\n{settings}')
    if bits is not None:
        scored = {"step": 10, "tokens": 100, "valid_loss": 2.0, "valid_bits_per_byte_carried": bits}
        lines = [*lines, scored]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    return folder


def test_runs_are_found_in_the_folder_and_two_below_it(tmp_path: Path) -> None:
    write_run(tmp_path / "all")
    write_run(tmp_path / "all/one")
    write_run(tmp_path / "all/group/two")
    write_run(tmp_path / "all/a/b/too-deep")
    write_run(tmp_path / "all/no-log").joinpath("metrics.jsonl").unlink()
    write_run(tmp_path / "all/no-settings").joinpath("run.toml").unlink()
    found = [p.relative_to(tmp_path).as_posix() for p in find_runs(tmp_path / "all")]
    assert found == ["all", "all/group/two", "all/one"]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no run: .* give the folder above your runs"):
        find_runs(tmp_path)
    with pytest.raises(ValueError, match=r"none is not a folder; give the one that holds"):
        find_runs(tmp_path / "none")


def test_a_run_is_summarised_by_its_last_values_and_its_median_speed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", bits=1.5)
    save_file({"a": torch.ones(3, 4), "b": torch.ones(5)}, folder / "model.safetensors")
    run = read_run(folder, "a name")
    assert (run.name, run.parameters, run.tokens) == ("a name", 17, 100)
    assert (run.step, run.steps, run.finished) == (10, 10, True)
    assert (run.loss, run.bits_per_byte) == (3.0, 1.5)
    assert (run.tokens_per_s, run.mfu) == (95.0, pytest.approx(0.2))


def test_a_run_that_has_just_begun_knows_little(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", lines=[]), "run")
    assert (run.step, run.tokens, run.finished) == (0, 0, False)
    assert run.parameters is run.loss is run.bits_per_byte is run.tokens_per_s is run.mfu is None


def test_a_run_is_finished_when_its_last_step_is_validated(tmp_path: Path) -> None:
    assert not read_run(write_run(tmp_path / "trained"), "").finished
    assert read_run(write_run(tmp_path / "validated", bits=2.0), "").finished


def test_a_damaged_weight_file_hides_only_the_size(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "model.safetensors").write_bytes(b"no such format")
    assert read_run(folder, "run").parameters is None


def test_settings_without_a_length_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "run.toml").write_text("")
    with pytest.raises(ValueError, match=r"run\.toml has no train\.steps"):
        read_run(folder, "run")


def test_the_best_run_comes_first_and_unknown_ones_last(tmp_path: Path) -> None:
    bits = {"a": 2.0, "b": None, "c": 1.0}
    runs = [read_run(write_run(tmp_path / name, bits=b), name) for name, b in bits.items()]
    assert [run.name for run in rank_runs(runs)] == ["c", "a", "b"]


def test_only_settings_that_differ_are_named_and_as_briefly_as_is_clear(tmp_path: Path) -> None:
    texts = [
        "data.path = 1\nmodel.path = 1\nmodel.width = 3",
        "data.path = 1\nmodel.path = 2\nmodel.width = 3\ntrain.precision = 'bfloat16'",
        "data.path = 2\nmodel.path = 1\nmodel.width = 3",
    ]
    runs = [
        read_run(write_run(tmp_path / str(number), text), str(number))
        for number, text in enumerate(texts)
    ]
    assert differences(runs) == [
        {"data.path": 1, "model.path": 1, "precision": "not set"},
        {"data.path": 1, "model.path": 2, "precision": "bfloat16"},
        {"data.path": 2, "model.path": 1, "precision": "not set"},
    ]
    assert differences(runs[:1]) == [{}]
