import numpy as np
import pytest

from retnet.data import Tokenizer, TokenStream
from retnet.train.validation import beginning

TEXTS = ["snow \u2603 falls", "and melts"]


def test_the_beginning_of_a_stream_counts_the_bytes_of_its_tokens():
    tokenizer = Tokenizer.train_bpe(TEXTS, 262)
    stream = TokenStream.from_texts(TEXTS, tokenizer)
    for num_tokens in range(2, stream.num_tokens):
        part = beginning(stream, tokenizer, num_tokens)
        assert part.num_tokens == num_tokens
        ids = [i for i in part.tokens.tolist() if i != tokenizer.bos_id]
        assert part.num_bytes == sum(len(tokenizer.id_bytes(i)) for i in ids)
        assert np.array_equal(part.document_starts, np.flatnonzero(part.tokens == tokenizer.bos_id))
    part = beginning(stream, tokenizer, stream.num_tokens - 1)
    assert part.num_bytes == stream.num_bytes - len(tokenizer.id_bytes(int(stream.tokens[-1])))


@pytest.mark.parametrize("num_tokens", [0, 10**9])
def test_all_of_a_stream_is_the_stream(num_tokens):
    tokenizer = Tokenizer.bytes()
    stream = TokenStream.from_texts(TEXTS, tokenizer)
    assert beginning(stream, tokenizer, num_tokens) is stream
