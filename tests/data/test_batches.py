import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retnet.data import (
    Tokenizer,
    TokenStream,
    eval_windows,
    stream_segments,
    training_batch,
    window_starts,
    windows_per_epoch,
)

BYTES = Tokenizer.bytes()
BOS = BYTES.bos_id


def numbered(num_tokens, bos_every=None):
    """A stream whose tokens are their own places, apart from BOS at 0 and every so often."""
    tokens = np.arange(1000, 1000 + num_tokens, dtype=np.uint32)
    starts = np.arange(0, num_tokens, bos_every or num_tokens)
    tokens[starts] = BOS
    return TokenStream(tokens, starts, num_bytes=num_tokens, bos_id=BOS)


def batch_of_parts(stream, *, world_size, micro_steps=1, **place):
    """The batches of all processes and micro-steps of a step, put together."""
    parts = [
        training_batch(
            stream,
            rank=rank,
            world_size=world_size,
            micro_step=micro_step,
            micro_steps=micro_steps,
            **place,
        )
        for micro_step in range(micro_steps)
        for rank in range(world_size)
    ]
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


@given(st.integers(2, 400), st.integers(1, 30), st.integers(0, 99), st.data())
def test_an_epoch_covers_every_window_once_whatever_the_number_of_processes(
    num_tokens, seq_len, seed, data
):
    seq_len = min(seq_len, num_tokens - 1)
    stream = numbered(num_tokens)
    per_epoch = windows_per_epoch(stream, seq_len)
    assert per_epoch == (num_tokens - 1) // seq_len
    epoch = data.draw(st.integers(0, 3))
    samples = np.arange(epoch * per_epoch, (epoch + 1) * per_epoch)
    starts = window_starts(samples, stream, seq_len=seq_len, seed=seed)
    read = (starts[:, None] + np.arange(seq_len)) % num_tokens
    assert len(np.unique(read)) == per_epoch * seq_len  # no token is an input twice


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_steps", [1, 2])
def test_processes_together_read_the_step_of_one(world_size, micro_steps):
    stream = numbered(203, bos_every=17)
    for step in range(9):  # 25 windows an epoch: steps cross its end
        place = {"seq_len": 8, "batch_size": 8, "seed": 3, "step": step}
        alone = training_batch(stream, **place)
        together = batch_of_parts(stream, world_size=world_size, micro_steps=micro_steps, **place)
        for one, many in zip(alone, together, strict=True):
            assert torch.equal(one, many)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_union_of_the_ranks_over_an_epoch_is_every_window_once(world_size):
    stream = numbered(8 * 24 + 3)
    first_tokens = torch.cat(
        [
            batch_of_parts(
                stream, world_size=world_size, seq_len=8, batch_size=8, seed=0, step=step
            )[0]
            for step in range(3)
        ]
    )
    assert windows_per_epoch(stream, 8) == len(first_tokens) == 24
    assert len(first_tokens.unique()) == 24 * 8


@given(st.integers(0, 30), st.integers(0, 5))
def test_resuming_at_any_step_reads_what_an_uninterrupted_run_reads(step, seed):
    stream, again = numbered(100, 9), numbered(100, 9)
    place = {"seq_len": 7, "batch_size": 4, "seed": seed}
    for earlier in range(step):
        training_batch(stream, **place, step=earlier)
    uninterrupted = training_batch(stream, **place, step=step)
    resumed = training_batch(again, **place, step=step)
    assert all(map(torch.equal, uninterrupted, resumed))


def test_targets_are_the_next_tokens_and_starts_the_document_starts():
    stream = numbered(64, bos_every=11)
    batch = training_batch(stream, seq_len=5, batch_size=24, seed=0, step=0)
    assert batch.inputs.shape == batch.targets.shape == batch.starts.shape == (24, 5)
    assert (batch.inputs.dtype, batch.targets.dtype) == (torch.int64, torch.int64)
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert torch.equal(batch.starts, batch.inputs == BOS)
    ring = stream.tokens.tolist()
    for row, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        places = [ring.index(token) for token in [*row, targets[-1]] if token != BOS]
        assert all(ring[(place + 1) % 64] in targets for place in places[:-1])


def test_window_borders_differ_between_epochs():
    stream = numbered(801)
    epochs = [
        window_starts(np.arange(e * 100, e * 100 + 100), stream, seq_len=8, seed=0) % 8
        for e in range(8)
    ]
    assert len({tuple(np.bincount(starts, minlength=8)) for starts in epochs}) > 3


def test_stream_of_one_window_serves_any_batch():
    batch = training_batch(numbered(6), seq_len=5, batch_size=16, seed=0, step=0)
    assert len({tuple(row) for row in batch.inputs.tolist()}) > 1  # epochs differ in phase


def test_too_short_stream_is_refused():
    with pytest.raises(
        ValueError, match=r"seq_len \(6\) must be below .* there are 6; use a short"
    ):
        training_batch(numbered(6), seq_len=6, batch_size=1, seed=0, step=0)


def test_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch_size \(6\) must be .* \(2 \* 2\); change one"):
        training_batch(
            numbered(9), seq_len=2, batch_size=6, seed=0, step=0, world_size=2, micro_steps=2
        )


@pytest.mark.parametrize("read", [stream_segments, eval_windows])
def test_sizes_that_are_not_positive_are_refused(read):
    for name in ("seq_len", "batch_size"):
        with pytest.raises(ValueError, match=rf"{name} \(0\) must be at least 1"):
            list(read(numbered(9), **({"seq_len": 4, "batch_size": 2} | {name: 0})))


@given(st.integers(2, 90), st.integers(1, 12), st.integers(1, 100))
def test_segments_are_the_stream_in_order(num_tokens, seq_len, bos_every):
    stream = numbered(num_tokens, bos_every)
    batches = list(stream_segments(stream, seq_len=seq_len))
    assert {len(batch.inputs) for batch in batches} == {1}
    inputs = torch.cat([batch.inputs[0] for batch in batches]).tolist()
    targets = torch.cat([batch.targets[0] for batch in batches]).tolist()
    assert inputs == stream.tokens[:-1].tolist()
    assert targets == stream.tokens[1:].tolist()


@given(st.integers(2, 90), st.integers(1, 12), st.integers(1, 100), st.integers(1, 8))
def test_rows_of_segments_are_whole_documents_and_predict_every_token_once(
    num_tokens, seq_len, bos_every, batch_size
):
    stream = numbered(num_tokens, bos_every)
    batches = list(stream_segments(stream, seq_len=seq_len, batch_size=batch_size))
    (rows,) = {len(batch.inputs) for batch in batches}
    assert rows <= batch_size
    inputs = torch.cat([batch.inputs for batch in batches], dim=1)
    targets = torch.cat([batch.targets for batch in batches], dim=1)
    starts = torch.cat([batch.starts for batch in batches], dim=1)
    assert targets[targets != -100].tolist() == stream.tokens[1:].tolist()
    assert inputs[targets != -100].tolist() == stream.tokens[:-1].tolist()
    assert starts[:, 0].all()
    assert (inputs[targets == -100] == BOS).all()
    assert (targets != -100).any(dim=0).all()  # no column is only padding


def test_rows_of_segments_are_of_even_length_when_documents_are_many():
    batches = list(stream_segments(numbered(1000, 10), seq_len=50, batch_size=4))
    assert len(batches) == 5
    assert all(len(batch.inputs) == 4 for batch in batches)


@given(st.integers(2, 90), st.integers(1, 12), st.integers(1, 5))
def test_evaluation_windows_predict_every_token_once(num_tokens, seq_len, batch_size):
    stream = numbered(num_tokens, 13)
    batches = list(eval_windows(stream, seq_len=seq_len, batch_size=batch_size))
    assert all(batch.inputs.shape[1] == seq_len for batch in batches)
    assert all(len(batch.inputs) == batch_size for batch in batches[:-1])
    inputs = torch.cat([batch.inputs for batch in batches])
    targets = torch.cat([batch.targets for batch in batches])
    assert targets[targets != -100].tolist() == stream.tokens[1:].tolist()
    assert inputs[targets != -100].tolist() == stream.tokens[:-1].tolist()
    assert (inputs[targets == -100] == BOS).all()
