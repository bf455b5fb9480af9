import sys
import sysconfig
import types
from pathlib import Path

import pytest

from retnet.data import Documents
from retnet.reproduce import corpus
from retnet.reproduce.corpus import PythonCorpus, documentation, is_held_out, write_corpus


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Sixty files, of which some are held out."""
    folder = tmp_path / "library"
    folder.mkdir()
    for number in range(60):
        (folder / f"module_{number}.py").write_text(f"x = {number}  # Füße\n", encoding="utf-8")
    return folder


def names(path: Path) -> set[str]:
    return {text.partition("#")[0] for text in Documents((path,))}


def test_every_file_is_learned_from_or_held_out_by_its_name(library: Path, tmp_path: Path) -> None:
    got = write_corpus(tmp_path / "corpus", library)
    train, valid = names(got.train), names(got.valid)
    assert not train & valid
    assert len(train) + len(valid) == got.num_documents == 60
    held_out = {n for n in range(60) if is_held_out(f"module_{n}.py")}
    assert valid == {f"x = {n}  " for n in held_out}


def test_sizes_are_those_of_the_text(library: Path, tmp_path: Path) -> None:
    got = write_corpus(tmp_path / "corpus", library)
    assert got.train_bytes == len(got.text(got.train))
    assert got.valid_bytes == len(got.text(got.valid))
    whole = sum(path.stat().st_size for path in library.iterdir())
    assert got.train_bytes + got.valid_bytes == whole


def test_the_same_library_gives_the_same_files(library: Path, tmp_path: Path) -> None:
    one, two = (write_corpus(tmp_path / name, library) for name in ("one", "two"))
    assert one.train.read_bytes() == two.train.read_bytes()
    assert one.valid.read_bytes() == two.valid.read_bytes()


def test_a_written_corpus_is_found_again(library: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    assert PythonCorpus.open(folder) is None
    assert write_corpus(folder, library) == PythonCorpus.open(folder)


def test_tests_packages_and_broken_files_are_left_out(library: Path, tmp_path: Path) -> None:
    for name in ("test/test_it.py", "site-packages/other.py", "__pycache__/old.py"):
        (library / name).parent.mkdir()
        (library / name).write_text("never = 'read'\n")
    (library / "_sysconfigdata_of_a_machine.py").write_text("never = 'read'\n")
    (library / "empty.py").write_text("\n")
    (library / "broken.py").write_bytes(b"never = '\xff'\n")
    (library / "latin.py").write_bytes("# coding: latin-1\ns = 'ä'\n".encode("latin-1"))
    got = write_corpus(tmp_path / "corpus", library)
    text = got.text(got.train) + got.text(got.valid)
    assert b"never" not in text
    assert "s = 'ä'".encode() in text
    assert got.num_documents == 61


def test_the_standard_library_is_named_with_its_version(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    monkeypatch.setattr(corpus, "SMALLEST_BYTES", 100)
    got = write_corpus(tmp_path / "corpus")
    version = ".".join(map(str, sys.version_info[:3]))
    assert got.description.startswith(f"the standard library of Python {version}")
    assert got.num_documents == 60


def test_without_source_the_documentation_is_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python in a zip file or an executable has none."""
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "nowhere")})
    got = write_corpus(tmp_path / "corpus")
    assert "its library has no source files here" in got.description
    assert got.train_bytes > 100_000
    assert got.valid_bytes > 0


def test_documentation_says_what_modules_and_their_functions_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("json.invented", "What the module does.")

    def function() -> None:
        """What the function does."""

    def foreign() -> None:
        """Said elsewhere."""

    function.__module__ = "json.invented"
    vars(module).update(function=function, foreign=foreign)
    monkeypatch.setitem(sys.modules, "json.invented", module)
    text = dict(documentation())["json.invented"]
    assert "What the module does." in text
    assert "function\n\nWhat the function does." in text
    assert "Said elsewhere" not in text


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"gave 0 bytes to learn from and 0 to hold out"):
        write_corpus(tmp_path / "corpus", tmp_path / "empty")
