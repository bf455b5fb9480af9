import gzip
import json
import os
import resource
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from retnet.data import DataConfig, Documents, Tokenizer, TokenizerConfig, TokenStream, prepare

BYTES = TokenizerConfig(kind="bytes")
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(40):
        words = [WORDS[(number * k + k) % 10] for k in range(30)]
        (folder / f"{number:02}.txt").write_text(" ".join(words) + f" \u2603{number}\n")
    return tmp_path


def read_all(folder):
    return [path.read_text() for path in sorted(folder.iterdir())]


def decode_documents(stream, tokenizer):
    ends = [*stream.document_starts[1:], stream.num_tokens]
    return [
        tokenizer.decode(stream.tokens[start:end].tolist())
        for start, end in zip(stream.document_starts, ends, strict=True)
    ]


@pytest.mark.parametrize("tokenizer", [TokenizerConfig(vocab_size=300), BYTES])
def test_prepared_streams_hold_every_document_and_count_its_bytes(home, tokenizer):
    config = DataConfig(train=("text",), valid_fraction=0.2, tokenizer=tokenizer)
    corpus = prepare(config, home / "cache", base=home)
    texts = [decode_documents(stream, corpus.tokenizer) for stream in (corpus.train, corpus.valid)]
    assert sorted(texts[0] + texts[1]) == sorted(read_all(home / "text"))
    for stream, held in zip((corpus.train, corpus.valid), texts, strict=True):
        assert stream.num_bytes == sum(len(text.encode()) for text in held)
        assert stream.num_documents == len(held) > 1
        assert (stream.tokens[stream.document_starts] == stream.bos_id).all()
        assert (stream.tokens == stream.bos_id).sum() == stream.num_documents
        assert isinstance(stream.tokens, np.memmap)
        assert stream.tokens.dtype == np.uint16


def test_given_validation_files_are_the_validation(home):
    (home / "valid.jsonl.gz").write_bytes(gzip.compress(b'{"text": "held out"}\n'))
    config = DataConfig(train=("text",), valid=("valid.jsonl.gz",), tokenizer=BYTES)
    corpus = prepare(config, home / "cache", base=home)
    assert corpus.train.num_documents == 40
    assert decode_documents(corpus.valid, corpus.tokenizer) == ["held out"]


def test_tokenizer_is_trained_on_training_text_only(home):
    (home / "valid.txt").write_text("unheard " * 1000)
    config = DataConfig(train=("text",), valid=("valid.txt",))
    corpus = prepare(config, home / "cache", base=home)
    tokens = {corpus.tokenizer.id_bytes(i) for i in range(corpus.tokenizer.vocab_size)}
    assert b" alpha" in tokens
    assert b"unheard" not in tokens


def test_second_call_opens_what_the_first_has_made(home):
    config = DataConfig(train=("text",), tokenizer=TokenizerConfig(vocab_size=300))
    calls = []
    first = prepare(config, home / "cache", base=home, progress=lambda *c: calls.append(c))
    assert {what for what, _, _ in calls} == {
        "reading",
        "training the tokenizer",
        "tokenising train",
        "tokenising valid",
    }
    assert all(done == total for _, done, total in calls if done)
    calls.clear()
    again = prepare(config, home / "cache", base=home, progress=lambda *c: calls.append(c))
    assert calls == []
    assert again.folder == first.folder
    assert np.array_equal(again.train.tokens, first.train.tokens)
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint


def test_calls_at_the_same_time_do_the_work_once(home):
    config = DataConfig(train=("text",), tokenizer=TokenizerConfig(vocab_size=300))
    stages = []

    def note(what, done, _):
        if not done:
            stages.append(what)

    def call(_):
        return prepare(config, home / "cache", base=home, progress=note).folder

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(call, range(4)))) == 1
    assert stages.count("training the tokenizer") == 1


def test_any_change_of_source_or_configuration_makes_a_new_corpus(home):
    def folder_of(**options):
        config = DataConfig(**({"train": ("text",), "tokenizer": BYTES} | options))
        return prepare(config, home / "cache", base=home).folder

    folders = [
        folder_of(),
        folder_of(valid_fraction=0.3),
        folder_of(split_on="x"),
        folder_of(tokenizer=TokenizerConfig(vocab_size=280)),
        folder_of(train=("text/0*.txt",)),
    ]
    file = home / "text" / "00.txt"
    stat = file.stat()
    file.write_text(file.read_text().upper())  # the same size, and perhaps the same tick
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    folders.append(folder_of())
    assert len(set(folders)) == len(folders)
    assert folder_of() == folders[-1]


def test_given_tokenizer_is_used_and_its_content_counts_not_its_path(home):
    Tokenizer.train_bpe(read_all(home / "text"), 270).save(home / "mine")
    Tokenizer.load(home / "mine").save(home / "copy")
    configs = [
        DataConfig(train=("text",), tokenizer=TokenizerConfig(kind="file", path=path))
        for path in ("mine/tokenizer.json", "copy")
    ]
    one, other = (prepare(config, home / "cache", base=home) for config in configs)
    assert one.tokenizer.vocab_size == 270
    assert one.folder == other.folder


def test_corpus_can_be_moved(home):
    config = DataConfig(train=("text",), tokenizer=BYTES)
    corpus = prepare(config, home / "cache", base=home)
    tokens = np.array(corpus.train.tokens)
    moved = type(corpus).open(corpus.folder.rename(home / "moved"))
    assert np.array_equal(moved.train.tokens, tokens)


@pytest.mark.parametrize("stage", ["reading", "tokenising train", "tokenising valid"])
def test_interrupted_call_leaves_nothing_behind(home, stage):
    config = DataConfig(train=("text",), tokenizer=BYTES)

    def interrupt(what, *_):
        if what == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, home / "cache", base=home, progress=interrupt)
    assert [path.suffix for path in (home / "cache").iterdir()] == [".lock"]
    assert prepare(config, home / "cache", base=home).train.num_tokens > 0


def test_leftovers_of_a_killed_call_are_removed(home):
    config = DataConfig(train=("text",), tokenizer=BYTES)
    folder = prepare(config, home / "cache", base=home).folder
    leftover = folder.parent / f".{folder.name}-killed"
    folder.rename(leftover)
    assert prepare(config, home / "cache", base=home).folder == folder
    assert not leftover.exists()


def cut_short(file):
    with file.open("r+b") as opened:
        opened.truncate(10)


def overwrite(file):
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train/tokens.bin", cut_short, r"tokens\.bin must have \d+ bytes and has 10"),
        ("valid/tokens.bin", Path.unlink, r"tokens\.bin must have \d+ bytes and has 0"),
        ("train/tokens.bin", overwrite, r"documents\.bin and .*tokens\.bin do not fit together"),
        ("train/documents.bin", overwrite, r"documents\.bin and .*tokens\.bin do not fit together"),
        ("train/index.json", cut_short, r"Unterminated|Expecting"),
        ("valid/index.json", Path.unlink, r"index\.json"),
        ("train", shutil.rmtree, r"index\.json"),
        ("tokenizer.json", cut_short, r"tokenizer\.json must be"),
        ("tokenizer_config.json", cut_short, r"tokenizer_config\.json must"),
    ],
)
def test_damaged_corpus_is_named_and_made_anew_once_deleted(home, name, damage, message):
    config = DataConfig(train=("text",), tokenizer=BYTES)
    corpus = prepare(config, home / "cache", base=home)
    tokens = np.array(corpus.train.tokens)
    damage(corpus.folder / name)
    remedy = rf"; delete {corpus.folder} and run the same command again"
    with pytest.raises(ValueError, match=rf"were damaged after .*{message}.*{remedy}"):
        prepare(config, home / "cache", base=home)
    shutil.rmtree(corpus.folder)
    assert np.array_equal(prepare(config, home / "cache", base=home).train.tokens, tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Path.unlink, r"39\.txt cannot be read \(No such file.*; bring it back"),
        (lambda file: file.write_text("other"), r"must stay as they are .* one has changed; run"),
        (lambda file: file.write_bytes(b""), r"must stay as they are .* one has changed; run"),
    ],
)
@pytest.mark.parametrize(
    "stage", ["training the tokenizer", "tokenising train", "tokenising valid"]
)
def test_file_that_vanishes_or_changes_meanwhile_is_noticed(home, change, message, stage):
    config = DataConfig(train=("text",), valid_fraction=0.2)

    def disturb(what, done, _):
        if what == stage and not done:
            change(home / "text" / "39.txt")

    with pytest.raises(ValueError, match=message):
        prepare(config, home / "cache", base=home, progress=disturb)
    assert [path.suffix for path in (home / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize("limit", [100, 9_000])
def test_full_disk_is_explained_and_nothing_half_made_is_left(home, limit):
    """A limit on the size of files fails the same write as a full disk, with another number."""
    config = DataConfig(train=("text",), tokenizer=BYTES)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(ValueError, match=r"cache cannot take the tokens \(.*\), .*; make room"):
            prepare(config, home / "cache", base=home)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.suffix for path in (home / "cache").iterdir()] == [".lock"]
    assert prepare(config, home / "cache", base=home).train.num_tokens > 0


def test_cache_where_a_file_lies_is_explained(home):
    (home / "cache").write_text("")
    with pytest.raises(ValueError, match=r"cache cannot take the tokens .*File exists"):
        prepare(DataConfig(train=("text",), tokenizer=BYTES), home / "cache", base=home)


def test_limit_holds_for_train_and_for_valid(home):
    (home / "valid").mkdir()
    for number in range(5):
        (home / "valid" / f"{number}.txt").write_text("x" * 100)
    config = DataConfig(train=("text",), valid=("valid",), max_bytes=250, tokenizer=BYTES)
    corpus = prepare(config, home / "cache", base=home)
    assert 250 <= corpus.train.num_bytes < 500
    assert corpus.valid.num_documents == 3


def test_tokenizer_of_a_long_text_is_trained_on_a_part(home, monkeypatch):
    monkeypatch.setattr(sys.modules[prepare.__module__], "BPE_BYTES", 2000)
    read = {}
    config = DataConfig(train=("text",), tokenizer=TokenizerConfig(vocab_size=300))

    def note(what, done, total):
        read[what] = (done, total)

    corpus = prepare(config, home / "cache", base=home, progress=note)
    assert 2000 <= read["training the tokenizer"][0] < 2300
    assert corpus.train.num_bytes > 4000


def test_description_of_the_streams_is_plain_json(home):
    config = DataConfig(train=("text/00.txt",), tokenizer=BYTES)
    corpus = prepare(config, home / "cache", base=home)
    index = json.loads((corpus.folder / "train" / "index.json").read_text())
    assert index["num_tokens"] == corpus.train.num_tokens
    assert index["num_bytes"] == corpus.train.num_bytes
    assert index["tokenizer"] == corpus.tokenizer.fingerprint
    origin = json.loads((corpus.folder / "origin.json").read_text())
    assert origin["sources"]["train"][0][0] == str(home / "text" / "00.txt")


def test_file_in_both_train_and_valid_is_refused(home):
    config = DataConfig(train=("text",), valid=("text/03.txt",), tokenizer=BYTES)
    with pytest.raises(ValueError, match=r"valid must share nothing with train, .*03\.txt; take"):
        prepare(config, home / "cache", base=home)


def test_empty_corpus_is_refused(home):
    (home / "a.txt").write_text("")
    (home / "b.txt").write_text("text")
    for valid in ((), ("b.txt",)):
        config = DataConfig(train=("a.txt",), valid=valid, tokenizer=BYTES)
        with pytest.raises(ValueError, match=r"train must hold .* hold 0 bytes"):
            prepare(config, home / "cache", base=home)
    config = DataConfig(train=("b.txt",), valid=("a.txt",), tokenizer=BYTES)
    with pytest.raises(ValueError, match="valid must hold text, and its files hold 0 bytes"):
        prepare(config, home / "cache", base=home)


def test_bad_file_is_named_before_the_tokenizer_is_trained(home):
    (home / "text" / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    with pytest.raises(ValueError, match=r"image\.png must be text, and byte 8 of it is 0x00"):
        prepare(DataConfig(train=("text",)), home / "cache", base=home)


def test_stream_in_memory_equals_the_stream_on_disk(home):
    (home / "b.txt").write_text("text")
    config = DataConfig(train=("text",), valid=("b.txt",), tokenizer=BYTES)
    corpus = prepare(config, home / "cache", base=home)
    files = tuple(sorted((home / "text").iterdir()))
    stream = TokenStream.from_texts(Documents(files), corpus.tokenizer)
    assert np.array_equal(stream.tokens, corpus.train.tokens)
    assert np.array_equal(stream.document_starts, corpus.train.document_starts)
    assert stream.num_bytes == corpus.train.num_bytes


def test_large_vocabulary_takes_32_bits_a_token():
    tokenizer = Tokenizer.bytes()
    tokenizer.vocab_size = 2**16 + 1
    assert TokenStream.from_texts(["a"], tokenizer).tokens.dtype == np.uint32


def test_stream_of_no_text_is_refused():
    with pytest.raises(ValueError, match="texts must hold at least one character"):
        TokenStream.from_texts(["", ""], Tokenizer.bytes())


def test_relative_paths_start_at_the_current_folder_by_default(home, monkeypatch):
    monkeypatch.chdir(home)
    config = DataConfig(train=("text",), tokenizer=BYTES)
    assert prepare(config, Path("cache")).train.num_documents > 1
