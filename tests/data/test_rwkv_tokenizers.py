import importlib.util
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from retnet.data import Tokenizer
from retnet.data.byte_level import byte_of_char
from retnet.data.longest_match import END, longest_match

# Pieces as the World vocabulary has them: bytes, words, runs, parts of a character; a word that is
# a piece where its beginnings are not; characters that begin pieces and are none themselves.
WORDS = [
    "a",
    "ab",
    "abcd",
    " a",
    " ab",
    "  ",
    "    ",
    "\n\n",
    "\n \n",
    "。",
    "。\n",
    "é",
    "ü-",
    "]^",
]
PARTS = [b"\xe4\xbd", b"\xf0\x9f", b"\xf0\x9f\x98", b"\x80\x81"]
PIECES = [bytes([byte]) for byte in range(256)] + [word.encode() for word in WORDS if word != "a"]
VOCABULARY = {piece: number for number, piece in enumerate(PIECES + PARTS, start=1)}
WORLD = Tokenizer(longest_match(VOCABULARY), END)
TEXTS = st.text() | st.text("abcd \n。éü-]^你\U0001f600\U0001f601", max_size=40)


def longest_matches(pieces: dict[bytes, int], data: bytes) -> list[int]:
    """The definition: at each place the longest piece that stands there."""
    longest = max(map(len, pieces))
    ids, at = [], 0
    while at < len(data):
        found = next(piece for n in range(longest, 0, -1) if (piece := data[at : at + n]) in pieces)
        ids.append(pieces[found])
        at += len(found)
    return ids


@given(text=TEXTS)
def test_tokens_are_the_longest_matches_and_their_bytes_the_text(text):
    ids = WORLD.encode(text)
    assert ids == longest_matches(VOCABULARY, text.encode())
    assert b"".join(map(WORLD.id_bytes, ids)) == text.encode()
    assert WORLD.decode(ids) == text


def test_end_of_text_is_id_0_and_no_text_makes_it():
    assert (WORLD.bos_id, WORLD.end_ids, WORLD.id_bytes(0)) == (0, (0,), b"")
    assert 0 not in WORLD.encode(f"a{END}b")
    assert next(iter(WORLD.encode_documents(["ab"]))).tolist() == [0, VOCABULARY[b"ab"]]


@pytest.mark.parametrize("text", [" " * 50_000, "abcd" * 20_000, "\u4f61\u0416" * 20_000])
def test_long_text_without_borders_is_encoded_at_once(text):
    """A WordPiece model alone would take hours."""
    assert WORLD.encode(text) == longest_matches(VOCABULARY, text.encode())


def test_tokenizer_folder_is_read_here_and_by_transformers(tmp_path):
    WORLD.save(tmp_path)
    again, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    text = "ab 你a\n\n。\n"
    assert again.fingerprint == WORLD.fingerprint
    assert theirs(text)["input_ids"] == [0, *WORLD.encode(text)] == [0, *again.encode(text)]
    assert theirs.decode(WORLD.encode(text)) == text
    assert theirs.bos_token_id == theirs.eos_token_id == 0


def test_piece_of_several_partial_characters_is_refused():
    with pytest.raises(ValueError, match=r"must be whole characters, or a part of one"):
        longest_match(VOCABULARY | {b"\x80\xe4": 999})


def lines(pieces: dict[bytes, int]) -> list[str]:
    def literal(piece: bytes) -> str:
        try:
            return repr(piece.decode())
        except UnicodeDecodeError:
            return repr(piece)

    return [f"{number} {literal(piece)} {len(piece)}" for piece, number in pieces.items()]


def test_vocabulary_is_read_from_its_text_file(tmp_path):
    file = tmp_path / "rwkv_vocab.txt"
    file.write_text("\n".join(lines(VOCABULARY)) + "\n", encoding="utf-8")
    assert Tokenizer.load(file).fingerprint == WORLD.fingerprint


@pytest.mark.parametrize(
    "line",
    ["7", "7 'ab'", "x 'ab' 2", "7 'ab' 3", "7 __import__('os').getcwd() 9", "0 'ab' 2", "7 9 1",
     "7 '' 0", "999 'a' 1", "7 [1] 1"],
)  # fmt: skip
def test_line_that_is_no_entry_is_named(tmp_path, line):
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join([*lines(VOCABULARY), line]), encoding="utf-8")
    with pytest.raises(
        ValueError, match=rf"vocab\.txt, line {len(VOCABULARY) + 1} .* must be an id"
    ):
        Tokenizer.load(file)


def test_id_that_two_pieces_have_is_refused(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join([*lines(VOCABULARY), "7 'xyz' 3"]), encoding="utf-8")
    with pytest.raises(ValueError, match="gives one id to several pieces"):
        Tokenizer.load(file)


def rwkv_vocabulary() -> Path:
    spec = importlib.util.find_spec("rwkv")
    if spec is None or spec.origin is None:
        pytest.skip("the World vocabulary comes with a package: pip install rwkv")
    return Path(spec.origin).with_name("rwkv_vocab_v20230424.txt")


def test_world_tokenizer_has_the_known_ids_and_those_of_its_package():
    file = rwkv_vocabulary()
    tokenizer = Tokenizer.load(file)
    assert tokenizer.vocab_size == 65530
    for text, ids in {
        "Hello world": [33155, 40213],
        "你好\uff0c世界": [10464, 11685, 19137, 10267, 14610],
        "\n\n": [261],
    }.items():
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
    theirs = pytest.importorskip("rwkv.rwkv_tokenizer").TRIE_TOKENIZER(str(file))
    for path in (Path(__file__), Path(tokenizers.__file__)):
        text = path.read_text(encoding="utf-8") + "…\n\u2028\U0001f9ff é\u0301 “A”\t\t\n  \n" * 3
        assert tokenizer.encode(text) == theirs.encode(text)


def neox_like() -> tokenizers.Tokenizer:
    """A tokenizer of the kind of RWKV's 20B_tokenizer.json, which is GPT-NeoX's."""
    vocab = {END: 0, "<|padding|>": 1} | {char: 2 + byte for char, byte in byte_of_char().items()}
    vocab |= {"th": 258, "the": 259, "Ġthe": 260}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END, "<|padding|>"])
    backend.add_tokens([" " * number for number in range(24, 1, -1)])
    return backend


def test_20b_tokenizer_is_one_of_the_tokenizers_library(tmp_path):
    neox_like().save(str(tmp_path / "20B_tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "20B_tokenizer.json")
    assert (tokenizer.bos_id, tokenizer.end_ids, tokenizer.vocab_size) == (0, (0,), 261 + 23)
    text = "\nthe the  e\u0301   " + END
    ids = tokenizer.encode(text)
    assert 0 not in ids
    assert 260 in ids
    assert tokenizer.decode(ids) == text.replace("e\u0301", "é")
    assert b"".join(map(tokenizer.id_bytes, ids)).decode() == tokenizer.decode(ids)


def test_end_of_text_may_be_another_token_than_the_one_before_it(tmp_path):
    neox_like().save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": END, "eos_token": "<|padding|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.end_ids) == (0, (1, 0))
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").end_ids == (1, 0)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[END]"}')
    with pytest.raises(ValueError, match=r"eos_token \('\[END\]'\) must be in the .* vocabulary"):
        Tokenizer.load(tmp_path)
