"""Names on a hub are tried in test_data_set.py, beside data sets."""

import pytest

from retnet.data import DataConfig, Tokenizer, TokenizerConfig, prepare
from retnet.data.pretrained import load_pretrained

TEXT = "some text, and some more of it\n" * 20


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_folder_is_loaded_as_of_kind_file_and_gives_the_same_corpus(tmp_path):
    mine = Tokenizer.train_bpe([TEXT], 270)
    mine.save(tmp_path / "mine")
    (tmp_path / "a.txt").write_text(TEXT)
    configs = [TokenizerConfig(kind=kind, path="mine") for kind in ("file", "pretrained")]
    one, other = (
        prepare(DataConfig(train=("a.txt",), tokenizer=config), tmp_path / "cache", base=tmp_path)
        for config in configs
    )
    assert one.tokenizer.fingerprint == other.tokenizer.fingerprint == mine.fingerprint
    assert one.folder == other.folder


@pytest.mark.parametrize("name", ["none/such", "none/such@v2", "no such name"])
def test_name_that_cannot_be_had_is_explained(tmp_path, name):
    message = rf"tokenizer.path \('{name}'\) must be a folder .* or a model .*; correct the name"
    with pytest.raises(ValueError, match=message):
        load_pretrained(name, tmp_path)


def test_folder_without_a_tokenizer_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"tokenizer path .*empty.* and there is none"):
        load_pretrained("empty", tmp_path)
