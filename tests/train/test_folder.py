import json
import os
from pathlib import Path

import pytest

from retnet.train.folder import RunFolder, read_progress


def save(folder, step, text, progress=None, keep=1):
    work = folder.begin()
    (work / "state").mkdir()
    for name in ("model/config.json", "model/model.safetensors", "state/shard.safetensors"):
        (work / name).write_text(f"{Path(name).name} {text}")
    folder.commit(step, progress or {}, keep)


def latest(folder):
    found, troubles = folder.latest_sound()
    assert not troubles
    return found and found.path


def published(folder):
    return (folder.path / "model.safetensors").read_text()


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        yield folder


def test_a_saved_step_is_the_latest_and_published(folder):
    assert latest(folder) is None
    save(folder, 3, "three", {"more": [0.1]})
    assert latest(folder) == folder.trainer / "step-3"
    progress = read_progress(latest(folder))
    assert (progress["step"], progress["more"]) == (3, [0.1])
    assert published(folder) == "model.safetensors three"


def test_only_the_newest_step_is_kept(folder):
    for step in (9, 10, 11):
        save(folder, step, str(step))
    names = sorted(p.name for p in folder.trainer.iterdir())
    assert names == [".lock", "step-11"]
    assert sorted(p.name for p in folder.path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "trainer",
    ]
    assert published(folder) == "model.safetensors 11"


def test_as_many_steps_are_kept_as_asked_for(folder):
    for step in (9, 10, 11):
        save(folder, step, str(step), keep=2)
    assert [path.name for path in folder.steps()] == ["step-11", "step-10"]


def test_an_older_step_serves_when_the_newest_is_damaged(folder):
    save(folder, 1, "one", keep=2)
    save(folder, 2, "two", keep=2)
    with (folder.trainer / "step-2/state/shard.safetensors").open("a") as file:
        file.write("X")
    found, (trouble,) = folder.latest_sound()
    assert found.path == folder.trainer / "step-1"
    assert "step-2 is damaged (state/shard.safetensors is not as it was written)" in trouble
    assert (folder.trainer / "damaged-step-2").exists()
    assert latest(folder) == found.path
    save(folder, 2, "two", keep=2)
    assert published(folder) == "model.safetensors two"


def test_a_step_that_is_given_up_leaves_nothing(folder):
    save(folder, 1, "one")
    (folder.begin() / "model/model.safetensors").write_text("half")
    folder.abandon()
    assert latest(folder) == folder.trainer / "step-1"
    assert sorted(p.name for p in folder.trainer.iterdir()) == [".lock", "step-1"]
    assert published(folder) == "model.safetensors one"


def test_a_crash_between_saving_and_publishing_is_mended(folder, monkeypatch):
    save(folder, 1, "one")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "publish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save(folder, 2, "two")
    assert published(folder) == "model.safetensors one"
    assert latest(folder) == folder.trainer / "step-2", "the newer of the two that there are"
    folder.publish(latest(folder))
    assert published(folder) == "model.safetensors two"
    save(folder, 3, "three")
    assert [p.name for p in folder.trainer.glob("step-*")] == ["step-3"]


def test_publishing_twice_leaves_no_temporary_file(folder):
    """rename(2) does nothing when both names are links to one file."""
    save(folder, 1, "one")
    folder.publish(latest(folder))
    assert not list(folder.path.glob(".*"))


def test_without_hard_links_files_are_copied(folder, monkeypatch):
    def no_links(*_):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    save(folder, 1, "one")
    assert published(folder) == "model.safetensors one"


def test_what_a_killed_run_left_behind_is_cleared_away(folder):
    (folder.trainer / ".saving" / "more").mkdir(parents=True)
    (folder.trainer / ".deleting" / "more").mkdir(parents=True)
    save(folder, 1, "one")
    save(folder, 2, "two")
    assert sorted(p.name for p in folder.trainer.iterdir()) == [".lock", "step-2"]


def test_a_file_that_was_written_into_is_noticed(folder):
    save(folder, 1, "one")
    with (folder.path / "model.safetensors").open("r+") as file:  # a link to the step's own
        file.write("X")
    message = (
        r"step-1 is damaged \(model/model\.safetensors is not as it was written\), and no older "
        r"step is whole; restore one from a backup, or delete"
    )
    with pytest.raises(ValueError, match=message):
        folder.latest_sound()
    assert (folder.trainer / "step-1").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2, "files": {"gone": "0"}}'])
def test_damaged_progress_is_named(folder, text):
    save(folder, 1, "one")
    path = latest(folder)
    (path / "progress.json").write_text(text)
    with pytest.raises(ValueError, match="step-1 is damaged"):
        read_progress(path)


def test_progress_of_another_format_is_refused(folder):
    save(folder, 1, "one")
    path = latest(folder)
    (path / "progress.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(ValueError, match="format 1, and this version reads 2"):
        read_progress(path)


def test_a_folder_in_use_is_refused(folder):
    with (
        pytest.raises(ValueError, match=r"run\.dir \(.*run\) is in use by another process"),
        RunFolder(folder.path).locked(),
    ):
        pass


def test_a_model_without_its_trainer_folder_is_not_overwritten(tmp_path):
    (tmp_path / "model.safetensors").write_text("precious")
    with (
        pytest.raises(ValueError, match=r"run\.dir \(.*\) holds a model without the trainer/"),
        RunFolder(tmp_path).locked(),
    ):
        pass
    assert (tmp_path / "model.safetensors").read_text() == "precious"
