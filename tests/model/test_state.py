"""States are batch-first values: reorder, fork, drop, join, copy, and never write to them."""

import pytest
import torch

from model.small import FORMS, close, config, decoder, leaves, same_states, tokens
from retnet.mixers.retention import Retention
from retnet.model import Decoder, DecoderState, preset
from retnet.model.state import concat_rows, copy_state, select_rows, state_bytes
from retnet.types import Form

forms = pytest.mark.parametrize("form", FORMS)


def test_every_tensor_of_a_state_leads_with_the_batch() -> None:
    """T8: a tensor of heads first would be reordered as if it were rows."""
    _, state = decoder(config({"num_heads": 2}))(tokens(5, 3))
    assert isinstance(state, DecoderState)
    assert [len(leaf) for leaf in leaves(state)] == [5] * len(leaves(state))


@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 1, 0], [2], [0, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("kind", [list, torch.tensor])
@forms
def test_reordered_duplicated_and_dropped_rows_go_on_as_the_rows_they_are(
    form: Form, rows: list[int], kind: type
) -> None:
    """T8: beam search."""
    model, text = decoder(), tokens(3, 8)
    more = tokens(len(rows), 3, seed=7)
    with torch.no_grad():
        _, state = model(text, form=form)
        got, after = model(more, select_rows(state, kind(rows)), form=form)
        want, _ = model(torch.cat([text[rows], more], 1), form=form)
    close(got, want[:, -3:])
    assert after.position.tolist() == [11] * len(rows)


def test_rows_at_different_places_can_be_joined() -> None:
    model = decoder()
    texts = [tokens(1, n, seed=n) for n in (1, 5, 12)]
    more = tokens(3, 4, seed=20)
    with torch.no_grad():
        joined = concat_rows([model(text)[1] for text in texts])
        assert joined.position.tolist() == [1, 5, 12]
        got, _ = model(more, joined)
        for row, text in enumerate(texts):
            want, _ = model(torch.cat([text, more[row : row + 1]], 1))
            close(got[row], want[0, -4:])


def test_joining_undoes_selecting() -> None:
    _, state = decoder()(tokens(3, 4))
    same_states(concat_rows([select_rows(state, [row]) for row in range(3)]), state, 0)


def test_joining_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="concat_rows got no states; pass at least one"):
        concat_rows([])


def test_no_row_may_be_selected() -> None:
    """A server's batch may become empty."""
    _, state = decoder()(tokens(3, 4))
    assert [len(leaf) for leaf in leaves(select_rows(state, []))] == [0] * len(leaves(state))


@forms
def test_a_call_never_writes_to_the_state_it_is_given(form: Form) -> None:
    """T8: two continuations of one prompt must not see each other."""
    model = decoder()
    _, state = model(tokens(2, 6))
    state = DecoderState(*state)
    kept = [leaf.detach().clone() for leaf in leaves(state)]
    valid = torch.tensor([[True, True, False], [True, False, True]])
    for T, mask in ((1, None), (3, None), (3, valid)):
        logits, _ = model(tokens(2, T, seed=3), state, valid=mask, form=form)
        logits.sum().backward(retain_graph=True)
        for leaf, before in zip(leaves(state), kept, strict=True):
            assert torch.equal(leaf, before)


def test_a_copy_shares_no_memory() -> None:
    _, state = decoder()(tokens(2, 3))
    copied = copy_state(state)
    same_states(copied, state, 0)
    for a, b in zip(leaves(copied), leaves(state), strict=True):
        assert a.data_ptr() != b.data_ptr()


def test_selected_rows_share_no_memory_with_the_state() -> None:
    _, state = decoder()(tokens(2, 3))
    for a, b in zip(leaves(select_rows(state, [0, 1])), leaves(state), strict=True):
        assert a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr()


def test_operations_keep_the_types_of_nested_states() -> None:
    _, state = decoder()(tokens(2, 3))
    for got in (copy_state(state), select_rows(state, [0]), concat_rows([state])):
        assert type(got) is DecoderState
        assert type(got.layers[0][0]) is type(state.layers[0][0])
        assert got.layers[0][1] is None


@pytest.mark.parametrize("T", [1, 50, 500])
def test_a_state_is_as_large_after_any_number_of_tokens(T: int) -> None:
    """H D_k D_v numbers a layer and one position a row, in bytes."""
    model = decoder(config({"num_heads": 4, "key_width": 8, "value_width": 24}), torch.float32)
    with torch.no_grad():
        _, state = model(tokens(3, T))
    assert state_bytes(state) == 3 * (8 + 2 * 4 * (4 * 2 * 6))


def test_state_of_the_largest_paper_model_has_67_million_numbers() -> None:
    """32 layers of 16 heads of 256 x 512: 268 MB in float32, whatever came before."""
    with torch.device("meta"):
        model = Decoder(preset("paper-6.7b", vocab_size=10))
    layers = [m for m in model.modules() if isinstance(m, Retention)]
    assert sum(m.config.num_heads * m.D_k * m.D_v for m in layers) == 67_108_864


def test_positions_count_tokens_of_the_current_document() -> None:
    model, text = decoder(), tokens(2, 6)
    valid = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    starts = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0]]).bool()
    with torch.no_grad():
        _, state = model(text, valid=valid)
        assert state.position.tolist() == [3, 0]
        _, state = model(text, state)
        assert state.position.tolist() == [9, 6]
        _, state = model(text, state, valid=valid, starts=starts)
        assert state.position.tolist() == [1, 6]
    assert state.position.dtype == torch.int64
