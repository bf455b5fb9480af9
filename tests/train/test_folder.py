import json
import os

import pytest

from retnet.train.folder import RunFolder, read_progress


def writer(text):
    def write(folder):
        for name in ("config.json", "model.safetensors", "optimizer.safetensors"):
            (folder / name).write_text(f"{name} {text}")

    return write


def published(folder):
    return (folder.path / "model.safetensors").read_text()


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        yield folder


def test_a_saved_step_is_the_latest_and_published(folder):
    assert folder.latest() is None
    folder.save(3, {"more": [0.1]}, writer("three"))
    assert folder.latest() == folder.trainer / "step-3"
    progress = read_progress(folder.latest())
    assert (progress["step"], progress["more"]) == (3, [0.1])
    assert published(folder) == "model.safetensors three"


def test_only_the_newest_step_is_kept(folder):
    for step in (9, 10, 11):
        folder.save(step, {}, writer(str(step)))
    names = sorted(p.name for p in folder.trainer.iterdir())
    assert names == [".lock", "step-11"]
    assert sorted(p.name for p in folder.path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "trainer",
    ]
    assert published(folder) == "model.safetensors 11"


def test_a_full_disk_keeps_the_step_before(folder):
    folder.save(1, {}, writer("one"))

    def fail(work):
        writer("two")(work)
        raise OSError(28, "No space left on device")

    with pytest.raises(
        ValueError, match=r"step 2 cannot be written .*No space left.*step-1 is kept"
    ):
        folder.save(2, {}, fail)
    assert folder.latest() == folder.trainer / "step-1"
    read_progress(folder.latest())
    assert published(folder) == "model.safetensors one"
    folder.save(2, {}, writer("two"))
    assert published(folder) == "model.safetensors two"


def test_a_crash_between_saving_and_publishing_is_mended(folder, monkeypatch):
    folder.save(1, {}, writer("one"))
    with monkeypatch.context() as patch:
        patch.setattr(folder, "publish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            folder.save(2, {}, writer("two"))
    assert published(folder) == "model.safetensors one"
    assert folder.latest() == folder.trainer / "step-2", "the newer of the two that there are"
    folder.publish(folder.latest())
    assert published(folder) == "model.safetensors two"
    folder.save(3, {}, writer("three"))
    assert [p.name for p in folder.trainer.glob("step-*")] == ["step-3"]


def test_publishing_twice_leaves_no_temporary_file(folder):
    """rename(2) does nothing when both names are links to one file."""
    folder.save(1, {}, writer("one"))
    folder.publish(folder.latest())
    assert not list(folder.path.glob(".*"))


def test_without_hard_links_files_are_copied(folder, monkeypatch):
    def no_links(*_):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    folder.save(1, {}, writer("one"))
    assert published(folder) == "model.safetensors one"


def test_what_a_killed_run_left_behind_is_cleared_away(folder):
    (folder.trainer / ".saving" / "more").mkdir(parents=True)
    (folder.trainer / ".deleting" / "more").mkdir(parents=True)
    folder.save(1, {}, writer("one"))
    folder.save(2, {}, writer("two"))
    assert sorted(p.name for p in folder.trainer.iterdir()) == [".lock", "step-2"]


def test_a_file_that_was_written_into_is_noticed(folder):
    folder.save(1, {}, writer("one"))
    with (folder.path / "model.safetensors").open("r+") as file:  # a link to the step's own
        file.write("X")
    with pytest.raises(
        ValueError, match=r"step-1 is damaged \(model\.safetensors is not as it was"
    ):
        read_progress(folder.latest())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1, "files": {"gone": "0"}}'])
def test_damaged_progress_is_named(folder, text):
    folder.save(1, {}, writer("one"))
    (folder.latest() / "progress.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"step-1 is damaged .* restore it from a backup, or delete"
    ):
        read_progress(folder.latest())


def test_progress_of_a_later_format_is_refused(folder):
    folder.save(1, {}, writer("one"))
    (folder.latest() / "progress.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match=r"format 2"):
        read_progress(folder.latest())


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
