import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from retnet.data import DataConfig, TokenizerConfig, prepare
from retnet.data.data_set import DataSetName, find_data_set, parse_entry

BYTES = TokenizerConfig(kind="bytes")
HUB = Path(__file__).with_name("hub_server.py")
BOTH_WAYS = pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def home(tmp_path):
    """A folder with data sets in Parquet, JSON Lines, and as `save_to_disk` writes them."""
    import datasets

    for name in ("pq", "js"):
        (tmp_path / name).mkdir()
    for part in range(2):
        texts = [None if row == 7 else f"{part} {row}" for row in range(100)]
        table = pa.table({"body": texts, "id": list(range(100))})
        parquet.write_table(table, tmp_path / "pq" / f"train-{part}.parquet")
    parquet.write_table(pa.table({"body": ["held out"]}), tmp_path / "pq" / "validation.parquet")
    lines = [json.dumps({"body": f"line {row}"}) for row in range(5)]
    (tmp_path / "js" / "a.jsonl").write_text("\n".join(lines))
    one = datasets.Dataset.from_dict({"body": ["a", "b"]})
    datasets.disable_progress_bars()
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "dev": one.select([0])}).save_to_disk(str(tmp_path / "two"))
    datasets.enable_progress_bars()
    return tmp_path


def read(home, entry, text_field="body", *, streaming=False):
    return list(find_data_set(entry, home, streaming=streaming).texts(text_field))


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ("hf:a/b", ("a/b", "", "", "")),
        ("hf:a/b:test", ("a/b", "", "", "test")),
        ("hf:a/b:big:test", ("a/b", "", "big", "test")),
        ("hf:a/b@v1.0:big:train[:10%]+test[5:]", ("a/b", "v1.0", "big", "train[:10%]+test[5:]")),
        ("hf:~/my data", ("~/my data", "", "", "")),
    ],
)
def test_entry_is_taken_apart(entry, parts):
    assert parse_entry(entry) == DataSetName(*parts)


@pytest.mark.parametrize("entry", ["hf:", "hf:a:", "hf:a:b:c:d", "hf:a@", "hf:a:train[", "hf::b"])
def test_malformed_entry_is_refused_with_the_config(entry):
    with pytest.raises(ValueError, match=r"must name a data set as 'hf:NAME'.*correct the entry"):
        DataConfig(train=(entry,))


@BOTH_WAYS
def test_folder_is_read_in_order_without_nulls(home, streaming):
    texts = [f"{part} {row}" for part in range(2) for row in range(100) if row != 7]
    assert read(home, "hf:pq", streaming=streaming) == texts
    assert read(home, "hf:pq:validation", streaming=streaming) == ["held out"]
    assert read(home, "hf:js", streaming=streaming) == [f"line {row}" for row in range(5)]


def test_slices_and_folders_of_save_to_disk_are_read(home):
    assert read(home, "hf:pq:train[3:5]") == ["0 3", "0 4"]
    assert read(home, "hf:one") == ["a", "b"]
    assert read(home, "hf:two") == ["a", "b"]
    assert read(home, f"hf:{home}/two:dev") == ["a"]


@BOTH_WAYS
@pytest.mark.parametrize(
    ("entry", "text_field", "message"),
    [
        ("hf:pq", "text", r"pq must have the column 'text', and it has \['body', 'id'\]; set text"),
        ("hf:js", "text", r"js must have the column 'text', and it has \['body'\]; set text_field"),
        ("hf:pq", "id", r"pq, row 1: the column 'id' must hold strings, and this is int; set text"),
        ("hf:pq:test", "body", r"pq:test must be a data set .*test.*'train'.*; correct its name"),
        ("hf:pq:big:train", "body", r"must be a data set that .* 'big' not found"),
        ("hf:two:test", "body", r"has no split 'test', but \['dev', 'train'\]"),
        ("hf:none/such", "body", r"'hf:none/such' must name a folder .*OfflineMode.*'hf:NAME@COMM"),
        ("hf:none/such@" + "0" * 40, "body", r"hf:none/such@0+ must be a data set that .*reach"),
    ],
)
def test_what_cannot_be_read_is_explained(home, entry, text_field, message, streaming):
    with pytest.raises(ValueError, match=message):
        read(home, entry, text_field, streaming=streaming)


def test_broken_file_is_explained_with_its_cause(home):
    (home / "pq" / "train-0.parquet").write_bytes(b"PAR1 is all there is")
    with pytest.raises(ValueError, match=r"hf:.*pq must be a data set .*Parquet"):
        read(home, "hf:pq")


def test_missing_library_is_named_with_the_command(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"'datasets', .*not installed; pip install 'retnet\[data"):
        read(home, "hf:pq")


def test_users_choice_of_progress_bars_stays(home):
    import datasets

    for choose in (datasets.disable_progress_bars, datasets.enable_progress_bars):
        choose()
        before = datasets.are_progress_bars_disabled()
        read(home, "hf:one")
        assert datasets.are_progress_bars_disabled() == before


def test_changed_file_of_a_folder_makes_a_new_corpus(home):
    config = DataConfig(train=("hf:js",), text_field="body", tokenizer=BYTES)
    first = prepare(config, home / "tokens", base=home)
    assert prepare(config, home / "tokens", base=home).folder == first.folder
    (home / "js" / "b.jsonl").write_text('{"body": "more"}')
    second = prepare(config, home / "tokens", base=home)
    assert [c.train.num_bytes + c.valid.num_bytes for c in (first, second)] == [30, 34]


@pytest.mark.parametrize("held_out", [(), ("hf:pq:validation",)])
def test_streamed_text_is_read_once_and_leaves_only_tokens(home, held_out, monkeypatch):
    from retnet.data.data_set import DataSet

    opened = []
    really = DataSet.texts
    monkeypatch.setattr(
        DataSet, "texts", lambda self, field: opened.append(self.split) or really(self, field)
    )
    config = {"train": ("hf:pq",), "valid": held_out, "text_field": "body"}
    loaded = prepare(DataConfig(**config), home / "tokens", base=home)
    assert len(opened) > 2
    opened.clear()
    streamed = prepare(DataConfig(**config, streaming=True), home / "tokens", base=home)
    assert sorted(opened) == ["", "validation"][: 1 + len(held_out)]
    for name in ("train", "valid"):
        assert (getattr(streamed, name).tokens == getattr(loaded, name).tokens).all()
    names = {path.name for path in (home / "tokens").rglob("*") if path.suffix != ".lock"}
    assert names == {
        *(streamed.folder.name, loaded.folder.name, "train", "valid", "origin.json"),
        *("tokenizer.json", "tokenizer_config.json"),
        *("tokens.bin", "documents.bin", "index.json"),
    }


def test_data_set_in_both_train_and_valid_is_refused(home):
    config = DataConfig(train=("hf:pq", "hf:js"), valid=("hf:js",), text_field="body")
    with pytest.raises(ValueError, match=r"valid must share nothing with train, .* hf:.*js; take"):
        prepare(config, home / "tokens", base=home)


SCRIPT = """
import json, os, sys
from pathlib import Path
from retnet.data import DataConfig, TokenizerConfig, prepare
sys.path.insert(0, sys.argv[1])
from hub_server import serve

with serve(Path("hub")) as (address, asked):
    os.environ["HF_ENDPOINT"] = address
    for options in json.loads(sys.argv[2]):
        asked.clear()
        options["tokenizer"] = TokenizerConfig(**options["tokenizer"])
        try:
            corpus = prepare(DataConfig(**options), Path("tokens"))
            stream = corpus.train
            got = [stream.num_documents, stream.num_bytes, corpus.tokenizer.bos_token]
        except ValueError as error:
            got = str(error)
        read = [call for call in asked if call.startswith("GET") and "/resolve/" in call]
        files = sorted({call.split("/")[-1] for call in read})
        origin = (corpus.folder / "origin.json").read_text()
        print(json.dumps([got, files, len(asked), origin]))
"""


def test_data_set_and_tokenizer_come_from_a_hub(tmp_path):
    """Over the network of this machine: HF_ENDPOINT is read at import, hence another process."""
    from retnet.data import Tokenizer

    data, model = tmp_path / "hub/owner/set", tmp_path / "hub/owner/model"
    (data / "raw").mkdir(parents=True)
    for part in range(3):
        texts = [f"{part} {row:03} " + "word " * 99 for row in range(100)]
        parquet.write_table(pa.table({"text": texts}), data / "raw" / f"train-{part}.parquet")
    parquet.write_table(pa.table({"text": ["held out"]}), data / "raw" / "validation-0.parquet")
    (data / "README.md").write_text(
        "---\nconfigs:\n- config_name: raw\n  data_files:\n"
        "  - {split: train, path: raw/train-*}\n  - {split: validation, path: raw/validation-*}\n"
        "- config_name: other\n  data_files: raw/train-0*\n---\n"
    )
    Tokenizer.bytes().save(model)
    entry = "hf:owner/set:raw:"
    valid = {"valid": [entry + "validation"], "tokenizer": {"kind": "bytes"}}
    streamed = {
        "train": [entry + "train"],
        "streaming": True,
        "max_bytes": 5000,
        "tokenizer": {"kind": "pretrained", "path": "owner/model"},
        "valid": [entry + "validation"],
    }
    configs = [
        streamed,
        streamed,
        {"train": [entry + "train"], **valid},
        {"train": ["hf:owner/set"], **valid},
        {"train": ["hf:owner/none"], **valid},
        {"train": [entry + "train"], "tokenizer": {"kind": "pretrained", "path": "owner/set"}},
    ]
    # The names of the library's variables; a token or a proxy of the user's has no place here.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(HUB.parent), json.dumps(configs)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    some, again, whole, no_config, no_set, no_tokenizer = map(json.loads, done.stdout.splitlines())
    assert some[0] == [10, 5010, "<|bos|>"]
    assert [name for name in some[1] if name.endswith("parquet")] == [
        "train-0.parquet",
        "validation-0.parquet",
    ]
    assert "hf:owner/set@c0ffee" in some[3]
    assert (again[0], again[1]) == (some[0], [])
    assert whole[0] == [300, 150_300, "<|bos|>"]
    assert "pick one among the available configs: ['raw', 'other']" in no_config[0]
    assert "'hf:owner/none' must name a folder" in no_set[0]
    assert "RepositoryNotFoundError" in no_set[0]
    assert "'owner/set') must be a folder" in no_tokenizer[0]
    assert "EntryNotFoundError" in no_tokenizer[0]
