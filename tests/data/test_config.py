import pytest

from retnet.data import DataConfig, TokenizerConfig


def test_vocabulary_that_cannot_hold_all_bytes_is_refused():
    with pytest.raises(
        ValueError, match=r"vocab_size \(256\) must be at least 257.*kind = 'bytes'"
    ):
        TokenizerConfig(vocab_size=256)


def test_vocabulary_size_is_not_asked_of_other_kinds():
    assert TokenizerConfig(kind="bytes", vocab_size=1).kind == "bytes"


@pytest.mark.parametrize(
    ("kind", "path"), [("file", ""), ("pretrained", ""), ("bpe", "tokenizer.json")]
)
def test_tokenizer_path_goes_with_kinds_that_are_loaded(kind, path):
    with pytest.raises(ValueError, match=r"tokenizer.path .* for kind 'file' or 'pretrained' and"):
        TokenizerConfig(kind=kind, path=path)


def test_unknown_tokenizer_kind_is_refused():
    wrong: dict = {"kind": "bpe" + "e"}
    with pytest.raises(Exception, match="bpee"):  # ValueError, or beartype's under its hook
        TokenizerConfig(**wrong)


def test_training_text_must_be_named():
    with pytest.raises(ValueError, match=r"train \(\(\)\) must name at least one file"):
        DataConfig(train=())


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_held_out_share_lies_between_nothing_and_all(fraction):
    with pytest.raises(ValueError, match=r"valid_fraction .* must lie between 0 and 1"):
        DataConfig(train=("a",), valid_fraction=fraction)


def test_broken_split_expression_is_refused():
    with pytest.raises(ValueError, match=r"split_on \('\('\) must be a regular expression"):
        DataConfig(train=("a",), split_on="(")


def test_streaming_asks_for_a_data_set():
    assert DataConfig(train=("a",), valid=("hf:b",), streaming=True).streaming
    with pytest.raises(
        ValueError, match=r"streaming \(True\) must go with a data set, .* leave it"
    ):
        DataConfig(train=("a",), streaming=True)


def test_negative_limit_is_refused():
    with pytest.raises(ValueError, match=r"max_bytes \(-1\) must not be negative, and 0 reads"):
        DataConfig(train=("a",), max_bytes=-1)
