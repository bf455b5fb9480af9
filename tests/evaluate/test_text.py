import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from retnet.data import Tokenizer, TokenStream
from retnet.evaluate import count_words, read_files, score_files, score_stream
from retnet.evaluate.text import find_texts
from retnet.hub import from_dict
from retnet.model import Decoder, DecoderConfig, preset, rival

TEXTS = ("Was it a car\nor a cat I saw?", "Füße", "a" * 700)


@pytest.fixture
def model() -> Decoder:
    layer = {
        "mixer": {"name": "retention", "num_heads": 2},
        "channel": {"name": "glu", "width": 8},
    }
    config = from_dict(DecoderConfig, {"d_model": 16, "layers": [layer], "vocab_size": 257})
    return Decoder(config).eval()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.txt" for number in range(len(TEXTS))]
    for path, text in zip(paths, TEXTS, strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


@torch.inference_mode()
def nats_of_document(model: Decoder, ids: list[int], next_bos: list[int]) -> float:
    """Each document alone, all at once, with the start of the next as its end."""
    logits, _ = model(torch.tensor([ids]), form="parallel")
    targets = torch.tensor([*ids[1:], *next_bos])
    return F.cross_entropy(logits[0, : len(targets)], targets, reduction="sum").item()


def test_carried_score_is_that_of_each_document_read_at_once(
    model: Decoder, files: list[Path]
) -> None:
    tokenizer = Tokenizer.bytes()
    bos = tokenizer.bos_id
    documents = [[bos, *text.encode()] for text in TEXTS]
    expected = sum(
        nats_of_document(model, ids, [bos] if number < len(TEXTS) - 1 else [])
        for number, ids in enumerate(documents)
    )
    score = score_files(model, tokenizer, files)
    assert score.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert score.num_tokens == sum(map(len, documents)) - 1
    assert math.isclose(score.nats, expected, rel_tol=1e-5)


@pytest.mark.parametrize("seq_len", [None, 7])
def test_batch_size_does_not_change_the_score(
    model: Decoder, files: list[Path], seq_len: int | None
) -> None:
    stream = read_files(Tokenizer.bytes(), files)
    one, many = (score_stream(model, stream, seq_len=seq_len, batch_size=b) for b in (1, 5))
    assert one.num_tokens == many.num_tokens
    assert math.isclose(one.nats, many.nats, rel_tol=1e-5)


@pytest.mark.parametrize(("mixer", "rows"), [("retention", 2), ("attention", 1)])
def test_a_state_that_grows_is_carried_in_one_row(mixer: str, rows: int) -> None:
    model = Decoder(rival(preset("small-1m", vocab_size=257), mixer)).eval()
    read: list[int] = []
    model.layers[0].register_forward_pre_hook(lambda _, given: read.append(given[0].shape[0]))
    stream = TokenStream.from_texts(["a" * 60] * 3, Tokenizer.bytes())
    score_stream(model, stream)
    assert max(read) == rows


def test_a_window_longer_than_the_text_scores_it_as_carried(
    model: Decoder, files: list[Path]
) -> None:
    stream = read_files(Tokenizer.bytes(), files)
    carried, windowed = score_stream(model, stream), score_stream(model, stream, seq_len=2000)
    assert math.isclose(carried.nats, windowed.nats, rel_tol=1e-5)


def test_windows_forget(model: Decoder, files: list[Path]) -> None:
    stream = read_files(Tokenizer.bytes(), files)
    carried, windowed = score_stream(model, stream), score_stream(model, stream, seq_len=4)
    assert carried.num_tokens == windowed.num_tokens
    assert not math.isclose(carried.nats, windowed.nats, rel_tol=1e-4)


def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary(files: list[Path]) -> None:
    model = Decoder(preset("small-1m", vocab_size=257))
    torch.nn.init.zeros_(model.embed_tokens.weight)  # the head is tied to it
    score = score_files(model, Tokenizer.bytes(), files[:1])
    assert math.isclose(score.perplexity, 257, rel_tol=1e-5)
    assert math.isclose(score.bits_per_byte, math.log2(257), rel_tol=1e-5)


def test_progress_goes_from_nothing_to_all(model: Decoder, files: list[Path]) -> None:
    told: list[tuple[int, int]] = []
    stream = read_files(Tokenizer.bytes(), files)
    score = score_stream(model, stream, progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, score.num_tokens)
    assert told[-1] == (score.num_tokens, score.num_tokens)
    assert told == sorted(told)


def test_a_file_that_is_not_there_is_named(model: Decoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.txt does not exist; give text files"):
        score_files(model, Tokenizer.bytes(), [tmp_path / "nowhere.txt"])


def test_no_files_are_refused(model: Decoder) -> None:
    with pytest.raises(ValueError, match="there is no file to read"):
        score_files(model, Tokenizer.bytes(), [])


def test_a_window_of_nothing_is_refused(model: Decoder, files: list[Path]) -> None:
    stream = read_files(Tokenizer.bytes(), files)
    with pytest.raises(ValueError, match=r"seq_len \(0\) must be at least 1"):
        score_stream(model, stream, seq_len=0)


def test_a_model_with_a_limit_is_scored_in_windows_as_long_as_it_can_read() -> None:
    config = rival(preset("small-1m", vocab_size=257), "hyena", l_max=16)
    model = Decoder(replace(config, layers=(replace(config.layers[0], repeat=1),))).eval()
    stream = TokenStream.from_texts(TEXTS, Tokenizer.bytes())
    assert score_stream(model, stream) == score_stream(model, stream, seq_len=16)
    with pytest.raises(ValueError, match=r"l_max \(16\)"):
        score_stream(model, stream, seq_len=17)


def test_a_stride_shorter_than_the_window_predicts_from_more(
    model: Decoder, files: list[Path]
) -> None:
    stream = read_files(Tokenizer.bytes(), files)
    disjoint, sliding = (score_stream(model, stream, seq_len=8, stride=s) for s in (8, 1))
    assert sliding.num_tokens == disjoint.num_tokens == stream.num_tokens - 1
    assert sliding.by_position[-1].num_tokens > disjoint.by_position[-1].num_tokens
    assert sum(p.num_tokens for p in sliding.by_position) == sliding.num_tokens
    nats = sum(p.num_tokens * p.nats for p in sliding.by_position)
    assert math.isclose(nats, sliding.nats, rel_tol=1e-9)


@pytest.mark.parametrize("seq_len", [None, 4])
def test_a_stride_needs_a_window_at_least_as_long(
    model: Decoder, files: list[Path], seq_len: int | None
) -> None:
    stream = read_files(Tokenizer.bytes(), files)
    with pytest.raises(ValueError, match=rf"stride \(5\) must be at most seq_len \({seq_len}\)"):
        score_stream(model, stream, seq_len=seq_len, stride=5)


def test_scoring_leaves_the_mode_as_it_was(model: Decoder, files: list[Path]) -> None:
    model.train()
    score_files(model, Tokenizer.bytes(), files)
    assert model.training


def test_words_are_counted_as_wikitext_does_and_spread_the_same_bits(
    model: Decoder, files: list[Path]
) -> None:
    words = count_words(find_texts(files))
    assert words == 4 + 5 + 1 + 1 + 1  # the last for the end of the line
    score = score_files(model, Tokenizer.bytes(), files)
    assert math.isclose(score.perplexity_per(words), math.exp(score.nats / words))
    with pytest.raises(ValueError, match="the texts have no words"):
        count_words([" "])


def test_texts_are_found_by_pattern_field_and_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "# one\\ntwo\\n# three"}\n', encoding="utf-8")
    found = find_texts([tmp_path / "*.jsonl"], text_field="body", split_on="# ")
    assert list(found) == ["# one\ntwo\n", "# three"]
    with pytest.raises(ValueError, match="must match at least one file"):
        find_texts([tmp_path / "*.txt"])
