import json
import os
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

import forks
from retnet.data import Tokenizer
from retnet.data.byte_level import byte_of_char, cut

TEXT = "the quick brown fox, the lazy dog's 1234 tails\n\tand\u00a0the \u4e2d\u6587 too.  \n" * 20
BPE = Tokenizer.train_bpe([TEXT], 280)
BYTES = Tokenizer.bytes()
OURS = pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=["bpe", "bytes"])
# Spaces, line ends and quotes are likelier than chance: they are what word borders depend on.
TEXTS = st.text() | st.text("a1é \n\t'.\u00a0\x1c\u3000中", max_size=40)


@OURS
@given(text=TEXTS)
def test_text_round_trips_and_ids_are_its_bytes(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.id_bytes(token_id) for token_id in ids) == text.encode()


@OURS
@given(text=TEXTS, size=st.integers(1, 5))
def test_cut_text_has_the_tokens_of_the_whole(tokenizer, text, size):
    pieces = list(cut(text, size))
    assert "".join(pieces) == text
    assert [token for piece in pieces for token in tokenizer.encode(piece)] == tokenizer.encode(
        text
    )


@OURS
@pytest.mark.parametrize("batch_chars", [1, 5000, 10**6])
def test_documents_are_encoded_as_one_by_one_with_bos_before(tokenizer, batch_chars, monkeypatch):
    monkeypatch.setattr("retnet.data.tokenizer.BATCH_CHARS", batch_chars)
    texts = [TEXT * 10, "", "x", "caf\u00e9 " * 3000]
    encoded = list(tokenizer.encode_documents(texts))
    assert [ids.tolist() for ids in encoded] == [
        [tokenizer.bos_id, *tokenizer.encode(text)] for text in texts
    ]
    assert encoded[0].dtype == np.int64


@OURS
def test_name_of_a_special_token_in_text_is_only_text(tokenizer):
    assert tokenizer.bos_id not in tokenizer.encode("a<|bos|>b")
    assert tokenizer.bos_id not in next(iter(tokenizer.encode_documents(["<|bos|>"])))[1:]
    assert tokenizer.decode(tokenizer.encode("a<|bos|>b")) == "a<|bos|>b"


@OURS
def test_special_token_has_no_bytes_and_no_text(tokenizer):
    assert tokenizer.id_bytes(tokenizer.bos_id) == b""
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("a")]) == "a"


@OURS
def test_id_outside_the_vocabulary_is_refused(tokenizer):
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=rf"token id {wrong} must be in \[0, "):
            tokenizer.id_bytes(wrong)
        with pytest.raises(ValueError, match=rf"token id {wrong} must be in \[0, "):
            tokenizer.decode([wrong])


@OURS
def test_half_of_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"character 1 of the text \('\\ud800'\) must be Unicode"):
        tokenizer.encode("a\ud800")
    with pytest.raises(ValueError, match=r"character 1 of the text"):
        list(tokenizer.encode_documents(["a\ud800"]))


@OURS
def test_saved_tokenizer_is_the_same_when_loaded_from_folder_or_file(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert (loaded.vocab_size, loaded.bos_id) == (tokenizer.vocab_size, tokenizer.bos_id)
        assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@OURS
def test_other_programs_that_read_the_file_see_the_document_start(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert plain.encode("a b").ids == [tokenizer.bos_id, *tokenizer.encode("a b")]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["bos_token"] == config["eos_token"] == "<|bos|>"
    assert config["clean_up_tokenization_spaces"] is False


def test_byte_tokenizer_has_a_token_for_each_byte_and_one_more():
    assert (BYTES.vocab_size, BYTES.bos_id) == (257, 256)
    assert BYTES.encode("\u00e9\n") == [0xC3, 0xA9, 0x0A]
    assert [BYTES.id_bytes(byte) for byte in range(256)] == [bytes([b]) for b in range(256)]


def test_stand_ins_for_bytes_are_the_librarys():
    assert set(byte_of_char()) == set(pre_tokenizers.ByteLevel.alphabet())


def test_training_twice_gives_the_same_tokenizer():
    assert Tokenizer.train_bpe([TEXT], 280).fingerprint == BPE.fingerprint
    assert Tokenizer.train_bpe([TEXT], 270).fingerprint != BPE.fingerprint


def test_trained_vocabulary_holds_all_bytes_and_no_token_of_two_digits():
    tokens = [BPE.id_bytes(token_id) for token_id in range(BPE.vocab_size)]
    assert BPE.vocab_size == 280
    assert {bytes([byte]) for byte in range(256)} <= set(tokens)
    assert not [token for token in tokens if len(token.strip()) > 1 and token.strip().isdigit()]


def test_text_without_repeats_fills_less_than_the_vocabulary():
    assert Tokenizer.train_bpe(["abc"], 1000).vocab_size == 257


def test_too_small_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size \(100\) must be at least 257"):
        Tokenizer.train_bpe([TEXT], 100)


def sentencepiece_like(bos="<s>"):
    vocab = {"<unk>": 0, bos: 1, "\u2581": 2, "a": 3, "\u2581a": 4}
    vocab |= {f"<0x{byte:02X}>": 5 + byte for byte in range(256)}
    model = models.BPE(vocab=vocab, merges=[("\u2581", "a")], byte_fallback=True, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", bos])
    return backend


def test_given_tokenizer_of_sentencepiece_kind_streams_bytes(tmp_path):
    backend = sentencepiece_like()
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode("a a\u2603")
    assert b"".join(tokenizer.id_bytes(token_id) for token_id in ids) == " a a\u2603".encode()
    assert tokenizer.decode(ids) == "a a\u2603"
    assert tokenizer.bos_id == 1
    assert tokenizer.id_bytes(1) == b""
    # Cutting would put a mark for a space before every piece.
    (document,) = tokenizer.encode_documents(["a a" * 10_000])
    assert document.tolist() == [1, *tokenizer.encode("a a" * 10_000)]


BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def trained_bpe():
    """As SentencePiece's BPE: bytes are ordinary tokens, a mark for the space begins the text."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", *BYTE_TOKENS], show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = spec["added_tokens"][:2]
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    backend.decoder = sentencepiece_like().decoder
    return backend


def trained_unigram(byte_fallback=True):
    """As SentencePiece's default model."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    if byte_fallback:
        spec = json.loads(backend.to_str())
        spec["model"]["vocab"] += [[token, -20.0] for token in BYTE_TOKENS]
        spec["model"]["byte_fallback"] = True
        backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
        backend.decoder = sentencepiece_like().decoder
    return backend


@pytest.mark.parametrize("make", [trained_bpe, trained_unigram])
@pytest.mark.parametrize("text", ["the fox", "the  lazy\n dog \u2603 \u4e2d\xe9\0", "", " a "])
def test_trained_tokenizers_of_sentencepiece_kind_stream_bytes(make, text):
    tokenizer = Tokenizer(make(), "<s>")
    ids = tokenizer.encode(text)
    streamed = b"".join(tokenizer.id_bytes(token_id) for token_id in ids).decode()
    assert streamed.removeprefix(" ") == text.removeprefix(" ")
    assert tokenizer.decode(ids) == text.removeprefix(" ")


def test_tokenizer_that_would_lose_characters_is_refused():
    with pytest.raises(
        ValueError, match=r"must hold every byte, so that no text is lost, .*of 243"
    ):
        Tokenizer(trained_unigram(byte_fallback=False), "<s>")


def test_document_start_that_text_can_hold_is_refused():
    with pytest.raises(ValueError, match=r"bos_token \('a'\) must be a special token, or it would"):
        Tokenizer(trained_bpe(), "a")


def test_given_tokenizer_keeps_plain_added_tokens_as_text(tmp_path):
    backend = tokenizers.Tokenizer.from_str(BPE._backend.to_str())
    backend.add_tokens(["    "])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("    ") == [280]
    assert tokenizer.id_bytes(280) == b"    "


@pytest.mark.parametrize("named", ["[DOC]", {"content": "[DOC]"}])
def test_document_start_may_be_named_in_the_config_which_is_kept(tmp_path, named):
    backend = sentencepiece_like(bos="[DOC]")
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": named, "eos_token": "a", "chat_template": "{{ x }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_token, tokenizer.bos_id) == ("[DOC]", 1)
    tokenizer.save(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert (saved["chat_template"], saved["eos_token"]) == ("{{ x }}", "a")


def test_tokenizer_without_a_document_start_is_refused(tmp_path):
    sentencepiece_like(bos="[DOC]").save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"a token must begin documents.*tokenizer_config\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "[START]"}')
    with pytest.raises(ValueError, match=r"bos_token \('\[START\]'\) must be in the .* vocabulary"):
        Tokenizer.load(tmp_path)


def test_tokenizer_whose_tokens_are_no_bytes_is_refused(tmp_path):
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "<s>": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"decoder \(WordPiece\) must be byte-level"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}', b"\xff\xfe"])
def test_broken_tokenizer_file_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"tokenizer\.json must be a tokenizer\.json .*make it again"
    ):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_broken_tokenizer_config_is_named(tmp_path, content):
    BYTES.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json must hold a JSON object"):
        Tokenizer.load(tmp_path)


def test_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer path .* and there is none; correct the path"):
        Tokenizer.load(tmp_path / "nowhere")


def test_fork_after_tokenising_neither_warns_nor_hangs():
    script = (
        "import os, warnings; warnings.simplefilter('ignore'); from retnet.data import Tokenizer;"
        "t = Tokenizer.train_bpe(['a b ' * 999], 300); list(t.encode_documents(['a b'] * 999));"
        "pid = os.fork();"
        "[list(t.encode_documents(['a b'] * 9)), os._exit(0)] if not pid else os.waitpid(pid, 0)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-c", script]
    done = forks.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
