"""A decoder whose states grow: what holds for constant states holds for these."""

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from model.small import close, decoder, same_states, tokens
from retnet.mixers.attention import AttentionConfig
from retnet.mixers.channel import GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import Decoder, DecoderConfig, LayerConfig
from retnet.model.decoding import Decoding, prefill
from retnet.model.sampling import Sampling
from retnet.model.state import (
    concat_rows,
    copy_state,
    select_rows,
    state_bytes,
    state_tensors,
    with_tensors,
)
from retnet.model.steps import open_state, pack

V = 31


def hybrid() -> DecoderConfig:
    """Two layers of attention, grouped and not, around one of retention."""
    channel = GLUConfig(width=32)
    mixers = (
        AttentionConfig(num_heads=4, num_kv_heads=2),
        RetentionConfig(num_heads=2),
        AttentionConfig(num_heads=2, position="none"),
    )
    layers = tuple(LayerConfig(mixer=mixer, channel=channel) for mixer in mixers)
    return DecoderConfig(d_model=16, layers=layers, vocab_size=V)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return decoder(hybrid())


def alone(model: Decoder, text: Tensor) -> Tensor:
    return model(text)[0]


@torch.no_grad()
def test_rows_that_have_read_different_amounts_are_joined_and_go_on(model: Decoder) -> None:
    texts = [tokens(1, n, seed=n) for n in (1, 12, 5)]
    more = tokens(3, 4, seed=20)
    joined = concat_rows([model(text)[1] for text in texts])
    got, after = model(more, joined)
    for row, text in enumerate(texts):
        close(got[row], alone(model, torch.cat([text, more[row : row + 1]], 1))[0, -4:])
    assert after.position.tolist() == [5, 16, 9]
    got, _ = model(more[:2], select_rows(after, [2, 0]))
    for row, at in enumerate((2, 0)):
        whole = torch.cat([texts[at], more[at : at + 1], more[row : row + 1]], 1)
        close(got[row], alone(model, whole)[0, -4:])


@torch.no_grad()
def test_a_state_is_copied_saved_and_restored(model: Decoder) -> None:
    _, state = model(tokens(2, 5))
    saved = {name: leaf.clone() for name, leaf in state_tensors(state).items()}
    more = tokens(2, 2, seed=3)
    want = model(more, state)[0]
    assert torch.equal(model(more, copy_state(state))[0], want)
    assert torch.equal(model(more, with_tensors(state, saved))[0], want)


@torch.no_grad()
def test_a_state_grows_by_two_vectors_of_the_key_heads_per_token_and_layer() -> None:
    layer = LayerConfig(mixer=AttentionConfig(num_heads=4, num_kv_heads=2))
    model = decoder(DecoderConfig(d_model=16, layers=(replace(layer, repeat=3),), vocab_size=V))
    for T in (1, 7):
        _, state = model(tokens(2, T))
        assert state_bytes(state) == 2 * (8 + T * 3 * 2 * (2 * 4) * 8)  # float64


@torch.no_grad()
def test_prefill_of_rows_that_end_at_different_chunks_equals_each_row_alone(model: Decoder) -> None:
    lengths = (3, 14, 9, 1)
    text = tokens(4, 14)
    valid = torch.arange(14) < torch.tensor(lengths)[:, None]
    logits, state = prefill(model, text, valid=valid, chunk_tokens=4)
    more = tokens(4, 3, seed=8)
    got, _ = model(more, state)
    for row, n in enumerate(lengths):
        close(logits[row], alone(model, text[row : row + 1, :n])[0, -1])
        whole = torch.cat([text[row : row + 1, :n], more[row : row + 1]], 1)
        close(got[row], alone(model, whole)[0, -3:])


def test_decoding_greedily_equals_the_argmax_of_whole_passes(model: Decoder) -> None:
    lengths = (3, 8, 5)
    text = tokens(3, 8)
    valid = torch.arange(8) < torch.tensor(lengths)[:, None]
    logits, state = prefill(model, text, valid=valid)
    decoding = Decoding(model, logits, state, Sampling(temperature=0.0))
    new = torch.stack(list(islice(decoding, 6)), 1)
    decoding.keep([2, 0])
    new = torch.cat([new[[2, 0]], torch.stack(list(islice(decoding, 6)), 1)], 1)
    for row, at in enumerate((2, 0)):
        whole = torch.cat([text[at, : lengths[at]], new[row]])[None]
        with torch.no_grad():
            want = model(whole)[0][0, lengths[at] - 1 : -1].argmax(-1)
        assert torch.equal(new[row], want)


@torch.no_grad()
def test_packed_documents_equal_each_document_alone(model: Decoder) -> None:
    text = tokens(1, 12)
    starts = torch.zeros(1, 12, dtype=torch.bool)
    starts[0, [0, 5, 6]] = True
    got, state = model(text, starts=starts)
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        close(got[:, begin:end], alone(model, text[:, begin:end]))
    more = tokens(1, 2, seed=4)
    close(model(more, state)[0], alone(model, torch.cat([text[:, 6:], more], 1))[:, -2:])


def test_a_place_that_was_marked_while_decoding_gives_its_state_later(model: Decoder) -> None:
    """The cache was written to since then, in slots that rows of the mark do not use."""
    text = tokens(2, 8)
    valid = torch.arange(8) < torch.tensor([[5], [8]])
    decoding = Decoding(model, *prefill(model, text, valid=valid), Sampling(temperature=0.0))
    new = [next(decoding) for _ in range(3)]
    mark = decoding.mark()
    new += [next(decoding) for _ in range(4)]
    read = torch.stack(new[:2], 1)
    with torch.no_grad():
        _, want = model(read, model(text, valid=valid)[1])
    same_states(mark(), want)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_packed_weights_decode_alike(weights: Any) -> None:
    """As near as the roundings of the weights are; the state has the packed dtype."""
    model = decoder(hybrid(), torch.float32)
    packed = pack(model, weights)
    text = tokens(2, 6)
    with torch.inference_mode():
        want, got = (m(text)[0] for m in (model, packed))
        tolerance = 1e-5 if weights == "float32" else 0.1
        assert (got.float() - want).abs().max() < tolerance * want.abs().max()
        opened = open_state(packed, packed(text)[1], 1)
        step, _ = packed(tokens(2, 1), opened)
        whole, _ = model(torch.cat([text, tokens(2, 1)], 1))
    assert (step[:, 0].float() - whole[:, -1]).abs().max() < tolerance * want.abs().max()
