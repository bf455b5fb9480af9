import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from retnet.data.split import evenly, select_all, split_documents

DOCUMENTS = [f"document {number}\n" * (1 + number % 7) for number in range(1000)]


def num_bytes(texts):
    return sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_every_document_is_on_one_side_and_the_share_is_right(fraction):
    train, valid = split_documents(DOCUMENTS, fraction)
    assert sorted([*train, *valid]) == sorted(DOCUMENTS)
    assert valid.num_bytes / num_bytes(DOCUMENTS) == pytest.approx(fraction, rel=0.1)


def test_hardly_a_document_changes_sides_when_others_come():
    _, valid = split_documents(DOCUMENTS, 0.1)
    _, more_valid = split_documents([*DOCUMENTS, "new\n"], 0.1)
    assert len(set(valid) ^ set(more_valid)) <= 2


def test_copies_of_a_document_stay_on_one_side():
    train, valid = split_documents(DOCUMENTS * 2, 0.1)
    assert not set(train) & set(valid)


def test_few_documents_of_any_length_never_lose_most_of_the_text():
    for number in range(20):
        documents = [f"{number}{place}" * 100 * (place + 1) for place in range(4)]
        _, valid = split_documents(documents, 0.05)
        assert 0.012 < valid.num_bytes / num_bytes(documents) < 0.06


def test_single_document_gives_its_tail_from_a_line_border():
    text = "".join(f"line {number}\n" for number in range(100))
    train, valid = split_documents([text], 0.1)
    (head,), (tail,) = train, valid
    assert head + tail == text
    assert tail.startswith("line ")
    assert 0.05 < len(tail) / len(text) < 0.15


@given(st.lists(st.text(), max_size=4), st.floats(0.001, 0.999))
def test_split_loses_nothing_and_leaves_no_side_empty(documents, fraction):
    documents = [text for text in documents if text]
    assume(max(map(len, documents), default=0) >= 2)
    train, valid = split_documents(documents, fraction)
    assert num_bytes(train) == train.num_bytes > 0
    assert num_bytes(valid) == valid.num_bytes > 0
    assert train.num_bytes + valid.num_bytes == num_bytes(documents)
    assert (list(train), list(valid)) == (list(train), list(valid))


def test_few_documents_of_which_none_fits_split_the_longest():
    documents = ["short\n" * 9, "a longer line\n" * 50, "short too\n" * 9]
    train, valid = split_documents(documents, 0.05)
    assert list(valid) == ["a longer line\n" * 3]
    assert list(train) == ["short\n" * 9, "a longer line\n" * 47, "short too\n" * 9]


@pytest.mark.parametrize("documents", [[], ["x"]])
def test_too_little_text_is_refused(documents):
    with pytest.raises(ValueError, match=r"train must hold enough .* hold [01] bytes .* in valid"):
        split_documents(documents, 0.1)


def test_no_text_at_all_is_refused_with_the_option_named():
    with pytest.raises(ValueError, match=r"valid must hold text, and its files hold 0 bytes"):
        select_all([], option="valid")


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0, 5.0])
def test_sample_is_spread_over_the_texts_and_of_the_size_asked_for(share):
    total = num_bytes(DOCUMENTS)
    sample = list(evenly(DOCUMENTS, total, int(total * share)))
    assert num_bytes(sample) / total == pytest.approx(min(share, 1), abs=0.01)
    first_half = num_bytes(set(sample) & set(DOCUMENTS[:500]))
    assert first_half / num_bytes(sample) == pytest.approx(0.5, abs=0.05)
    assert sample[0] == DOCUMENTS[0]
