"""Prefix-LM and encoder-decoder: who sees whom, and an answer written token by token."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retnet.reproduce.experiments.lm_layouts import LAYOUTS
from retnet.reproduce.seq2seq import Seq2SeqConfig, Seq2SeqModel, sight_mask

V, PREFIX, MOST = 11, 5, 9


def model(**options: Any) -> Seq2SeqModel:
    torch.manual_seed(0)
    config = Seq2SeqConfig(
        vocab_size=V, prefix=PREFIX, max_tokens=MOST, d_model=8, num_heads=2, width=12, **options
    )
    return Seq2SeqModel(config).double().eval()


def tokens(rows: int = 2) -> Tensor:
    return torch.randint(V, (rows, MOST), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", LAYOUTS)
@given(cuts=st.sets(st.integers(PREFIX, MOST - 1)))
def test_an_answer_may_be_read_in_pieces(layout: str, cuts: set[int]) -> None:
    reader, x = model(**LAYOUTS[layout]), tokens()
    whole, last = reader.hidden(x)
    parts, state = [], None
    for start, stop in pairwise([0, *sorted(cuts), MOST]):
        part, state = reader.hidden(x[:, start:stop], state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-12, rtol=0)
    assert state is not None
    assert state.seen == last.seen == MOST


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_input_is_read_in_one_piece(layout: str) -> None:
    reader, x = model(**LAYOUTS[layout]), tokens()
    with pytest.raises(ValueError, match="the input of 5 tokens has to be read in one piece"):
        reader.hidden(x[:, : PREFIX - 1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_token_moves_those_that_see_it_and_no_others(layout: str) -> None:
    options = LAYOUTS[layout]
    reader, x = model(num_layers=1, **options), tokens(1)
    sight = options.get("sight", "causal")
    seen = sight_mask(sight, 2, PREFIX, MOST).any(0)
    before, _ = reader.hidden(x)
    for place in range(MOST):
        changed = x.clone()
        changed[:, place] = (x[:, place] + 1) % V
        after, _ = reader.hidden(changed)
        moved = (after - before).abs().amax((0, 2)) > 1e-9
        assert moved.tolist() == seen[:, place].tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_do_not_see_each_other(layout: str) -> None:
    reader, x = model(**LAYOUTS[layout]), tokens(3)
    together, _ = reader.hidden(x)
    alone, _ = reader.hidden(x[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-12, rtol=0)


def test_an_input_read_both_ways_is_the_segments_of_a_prefix_lm() -> None:
    """By segments, 0 for the input and 1 for the answer: summed, a key's is not above a query's."""
    segments = torch.tensor([0] * PREFIX + [1] * (MOST - PREFIX)).cumsum(0)
    expected = segments <= segments[:, None]
    assert torch.equal(sight_mask("both", 1, PREFIX, MOST)[0], expected)


def test_half_of_mixed_heads_look_ahead() -> None:
    back, ahead = sight_mask("mixed", 2, 3, 4)
    assert back.tolist() == torch.ones(4, 4).tril().bool().tolist()
    assert ahead[:3, :3].tolist() == torch.ones(3, 3).triu().bool().tolist()
    assert torch.equal(ahead[3:], back[3:])  # the answer sees all that came before
    assert not ahead[:3, 3:].any()


def test_weights_of_an_input_are_shares_of_what_it_sees() -> None:
    x = tokens()
    for options in LAYOUTS.values():
        layers = model(**options).input_weights(x)
        assert len(layers) == 2
        mask = sight_mask(options.get("sight", "causal"), 2, PREFIX, PREFIX)
        for weights in layers:
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, PREFIX).double())
            assert torch.equal(weights > 0, mask.expand(2, -1, -1, -1))


def test_weights_of_their_own_are_about_twice_as_many() -> None:
    shared, own = (model(shared=shared).num_parameters(False) for shared in (True, False))
    assert 2 < own / shared < 2.6
    assert model().num_parameters() - shared == 2 * V * 8 + MOST * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": 9}, r"prefix \(9\) must be at least 1 and below max_tokens \(9\)"),
        ({"num_heads": 3}, r"d_model \(64\) must be a multiple of num_heads \(3\)"),
        ({"num_heads": 1, "sight": "mixed"}, r"num_heads \(1\) must be even"),
    ],
)
def test_a_config_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Seq2SeqConfig(**{"vocab_size": V, "prefix": PREFIX, "max_tokens": MOST, **options})


def test_more_tokens_than_positions_are_refused() -> None:
    reader, x = model(), tokens()
    _, state = reader.hidden(x)
    with pytest.raises(ValueError, match=r"9 \+ 1 tokens are more than max_tokens \(9\)"):
        reader.hidden(x[:, :1], state)
