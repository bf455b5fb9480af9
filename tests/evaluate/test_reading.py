from itertools import product

import numpy as np
import pytest
import torch

from retnet.data import TokenStream
from retnet.evaluate.reading import CALL_TOKENS, Segment, read_carried, read_windows
from retnet.ops.cross_entropy import IGNORED

BOS = 0


def stream_of(*lengths: int) -> TokenStream:
    """Documents whose tokens are all different, so that a token names its place."""
    starts = np.cumsum([0, *lengths])[:-1]
    tokens = np.arange(sum(lengths), dtype=np.uint32) + 1
    tokens[starts] = BOS
    return TokenStream(tokens, starts, num_bytes=1, bos_id=BOS)


def rows_read(segments: list[Segment]) -> list[list[tuple[int, int, int]]]:
    """Of each lane what it read: (input, target, read), put together along its rows."""
    lanes: list[list[tuple[int, int, int]]] = []
    alive: list[int] = []
    for segment in segments:
        if segment.rows is None:
            alive = list(range(len(lanes), len(lanes) + len(segment.inputs)))
            lanes += [[] for _ in segment.inputs]
        else:
            alive = [alive[row] for row in segment.rows]
        for lane, *columns in zip(
            alive,
            segment.inputs.tolist(),
            segment.targets.tolist(),
            segment.read.tolist(),
            strict=True,
        ):
            lanes[lane] += list(zip(*columns, strict=True))
    return lanes


LENGTHS = [(5,), (2, 2, 2), (4000, 900, 800, 3000, 2), (9000, 2), (2, 9000)]


@pytest.mark.parametrize(("lengths", "batch_size"), list(product(LENGTHS, (1, 2, 7))))
def test_lanes_read_whole_documents_and_every_token_once(
    lengths: tuple[int, ...], batch_size: int
) -> None:
    stream = stream_of(*lengths)
    segments = list(read_carried(stream, batch_size=batch_size))
    found = []
    for lane in rows_read(segments):
        before = None
        for token, target, read in lane:
            if target == IGNORED:
                continue
            assert token == BOS if read == 0 else before == token
            before = target
            found.append(target)
    assert sorted(found) == sorted(stream.tokens[1:].tolist())
    assert all(len(segment.inputs) <= batch_size for segment in segments)
    assert all(segment.inputs.numel() <= CALL_TOKENS for segment in segments)
    read = sum(segment.inputs.numel() for segment in segments)
    assert read <= 2 * CALL_TOKENS + 2 * stream.num_tokens


def test_places_in_a_document_count_from_its_start_in_every_lane() -> None:
    stream = stream_of(4000, 900, 800, 3000)
    at = {token: place for place, token in enumerate(stream.tokens.tolist()) if token != BOS}
    starts = stream.document_starts.tolist()
    for lane in rows_read(list(read_carried(stream, batch_size=3))):
        for token, target, read in lane:
            if target != IGNORED and token != BOS:
                assert read == at[token] - max(s for s in starts if s <= at[token])


@pytest.mark.parametrize(("seq_len", "stride"), [(8, 8), (8, 3), (8, 1), (50, 50), (50, 7)])
def test_windows_score_every_token_once_from_enough_before_it(seq_len: int, stride: int) -> None:
    stream = stream_of(20, 9, 2)
    targets, starts = [], stream.document_starts.tolist()
    at = {token: place for place, token in enumerate(stream.tokens.tolist())}
    for lane in rows_read(list(read_windows(stream, seq_len=seq_len, stride=stride, batch_size=2))):
        for token, target, read in lane:
            if target == IGNORED:
                continue
            targets.append(target)
            if token != BOS:
                document = at[token] - max(s for s in starts if s <= at[token])
                assert min(document, seq_len - stride) <= read <= document
    assert sorted(targets) == sorted(stream.tokens[1:].tolist())


def test_starts_are_left_out_where_no_document_begins() -> None:
    first, second, *_ = read_carried(stream_of(3 * CALL_TOKENS), batch_size=4)
    assert first.starts is not None
    assert first.starts.sum() == 1
    assert second.starts is None
    assert second.rows == [0]
    assert torch.equal(second.read[0, :2], torch.tensor([CALL_TOKENS, CALL_TOKENS + 1]))
