from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from retnet.model.decoder import Decoder
from retnet.model.decoding import Decoding, prefill
from retnet.model.sampling import Sampling, row_generator, sample
from retnet.model.state import DecoderState, select_rows, state_bytes

GREEDY = Sampling(temperature=0.0)
few = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [leaf for part in state or () for leaf in tensors(part)]


def assert_same_state(got: DecoderState, want: DecoderState) -> None:
    for a, b in zip(tensors(got), tensors(want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.fixture
def work(tiny_model: Decoder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the model is asked to do: tokens read and rows predicted, call by call."""
    done: list[tuple[str, int]] = []
    hidden, head = tiny_model.hidden, tiny_model.head

    def counted_hidden(tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        done.append(("read", tokens.numel()))
        return hidden(tokens, *args, **kwargs)

    def counted_head(h: Tensor) -> Tensor:
        done.append(("predict", h[..., 0].numel()))
        return head(h)

    monkeypatch.setattr(tiny_model, "hidden", counted_hidden)
    monkeypatch.setattr(tiny_model, "head", counted_head)
    return done


@few
@given(length=st.integers(1, 23), chunk_tokens=st.integers(1, 25))
def test_prefill_in_chunks_of_any_size_equals_one_pass(tiny_model, length, chunk_tokens):
    tokens = torch.randint(256, (2, length))
    want, want_state = tiny_model(tokens)
    got, state = prefill(tiny_model, tokens, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(got, want[:, -1], rtol=1e-9, atol=1e-9)
    assert_same_state(state, want_state)


@few
@given(
    valid=st.integers(1, 12).flatmap(
        lambda T: st.lists(
            st.lists(st.booleans(), min_size=T, max_size=T).filter(any), min_size=1, max_size=4
        )
    ),
    chunk_tokens=st.integers(1, 13),
    continues=st.booleans(),
)
def test_prefill_of_rows_padded_anywhere_equals_each_row_alone(
    tiny_model, valid, chunk_tokens, continues
):
    valid = torch.tensor(valid)
    tokens = torch.randint(256, valid.shape)
    before = tiny_model(torch.randint(256, (len(valid), 3)))[1] if continues else None
    got, state = prefill(tiny_model, tokens, before, valid=valid, chunk_tokens=chunk_tokens)
    for row in range(len(valid)):
        alone = None if before is None else select_rows(before, [row])
        want, want_state = tiny_model(tokens[row, valid[row]][None], alone)
        torch.testing.assert_close(got[row], want[0, -1], rtol=1e-9, atol=1e-9)
        assert_same_state(select_rows(state, [row]), want_state)


def test_prefill_stops_paying_for_a_row_after_the_chunk_in_which_it_ends(tiny_model, work):
    lengths = torch.tensor([3, 40, 9])
    valid = torch.arange(50) < lengths[:, None]
    prefill(tiny_model, torch.zeros(3, 50, dtype=torch.int64), valid=valid, chunk_tokens=8)
    # chunks of 8 hold 3, 2, 1, 1, 1 rows; none holds the padding after the longest row
    read = [8 * 3, 8 * 2, 8, 8, 8]
    assert work == [("read", n) for n in read] + [("predict", 3)]


def test_prefill_refuses_a_row_without_tokens_and_a_chunk_without_size(tiny_model):
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    valid = torch.tensor([[True, False, False], [False, False, False]])
    with pytest.raises(ValueError, match=r"row 1 of tokens \(2, 3\) has no token to predict from"):
        prefill(tiny_model, tokens, valid=valid)
    with pytest.raises(ValueError, match=r"row 0 of tokens \(2, 0\) has no token"):
        prefill(tiny_model, tokens[:, :0])
    with pytest.raises(ValueError, match=r"chunk_tokens \(0\) must be at least 1; 2048 is usual"):
        prefill(tiny_model, tokens, chunk_tokens=0)


def test_decoding_greedily_equals_the_argmax_of_a_full_forward_pass(tiny_model):
    prompt = torch.randint(256, (3, 7))
    decoding = Decoding(tiny_model, *prefill(tiny_model, prompt), GREEDY)
    new = torch.stack(list(islice(decoding, 12)), dim=1)
    logits, _ = tiny_model(torch.cat([prompt, new], dim=1), form="parallel")
    assert torch.equal(new, logits[:, 6:-1].argmax(-1))


def test_decoding_costs_one_token_and_one_state_per_row_whatever_came_before(tiny_model, work):
    prompt = torch.randint(256, (2, 30))
    decoding = Decoding(tiny_model, *prefill(tiny_model, prompt), Sampling(seed=0))
    size = state_bytes(decoding.state)
    del work[:]
    for _ in islice(decoding, 40):
        assert state_bytes(decoding.state) == size
    assert work == [("read", 2), ("predict", 2)] * 39  # the first is predicted by the prefill


def test_decoding_reads_a_token_when_the_one_after_it_is_asked_for(tiny_model):
    prompt = torch.randint(256, (1, 5))
    decoding = Decoding(tiny_model, *prefill(tiny_model, prompt), GREEDY)
    new = [next(decoding) for _ in range(4)]
    assert decoding.state.position.tolist() == [5 + 3]
    want, state = tiny_model(torch.cat([prompt, torch.stack(new, dim=1)[:, :3]], dim=1))
    torch.testing.assert_close(decoding.logits, want[:, -1], rtol=1e-9, atol=1e-9)
    assert_same_state(decoding.state, state)


@pytest.mark.parametrize("when", [0, 1, 4])
def test_decoding_keeps_rows_as_if_the_others_had_never_been(tiny_model, when):
    sampling = Sampling(seed=3, repetition_penalty=1.5, presence_penalty=0.1)
    logits, state = prefill(tiny_model, torch.randint(256, (4, 6)))
    generators = [row_generator(3, i) for i in range(4)]
    decoding = Decoding(tiny_model, logits, state, sampling, generators)
    got = [next(decoding)[[3, 1]] for _ in range(when)]
    decoding.keep([3, 1])
    got += islice(decoding, 6)
    generators = [row_generator(3, i) for i in (3, 1)]
    kept = Decoding(tiny_model, logits[[3, 1]], select_rows(state, [3, 1]), sampling, generators)
    assert torch.stack(got).tolist() == torch.stack(list(islice(kept, when + 6))).tolist()


def test_decoding_penalizes_what_it_has_generated_and_not_the_prompt(tiny_model):
    sampling = Sampling(seed=1, temperature=0.1, repetition_penalty=3.0, presence_penalty=1.0)
    logits, state = prefill(tiny_model, torch.randint(256, (2, 6)))
    decoding = Decoding(tiny_model, logits, state, sampling)
    generators = [row_generator(1, i) for i in range(2)]
    counts = torch.zeros(2, 257, dtype=torch.int64)
    for _ in range(10):
        want = sample(logits, sampling, generators, counts)
        assert torch.equal(next(decoding), want)
        counts[[0, 1], want] += 1
        logits, state = tiny_model(want[:, None], state)
        logits = logits[:, 0]


def test_decoding_leaves_no_graph_and_no_inference_mode_behind(tiny_model):
    decoding = Decoding(tiny_model, *prefill(tiny_model, torch.tensor([[1, 2]])), GREEDY)
    for _ in islice(decoding, 2):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        assert not any(leaf.requires_grad for leaf in tensors(decoding.state))


def test_decoding_that_was_interrupted_goes_on_where_it_was(tiny_model, monkeypatch):
    logits, state = prefill(tiny_model, torch.tensor([[1, 2]]))
    want = [int(token) for token in islice(Decoding(tiny_model, logits, state, GREEDY), 5)]
    decoding = Decoding(tiny_model, logits, state, GREEDY)
    got = [int(next(decoding)), int(next(decoding))]

    def interrupt(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tiny_model, "head", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(decoding)
    assert got + [int(token) for token in islice(decoding, 3)] == want
