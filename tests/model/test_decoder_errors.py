"""What the decoder refuses, and how it says so."""

import pytest
import torch

from model.small import config, decoder, tokens
from retnet.model import Decoder
from unchecked import unchecked


@pytest.mark.parametrize("shape", [(2, 0), (0,), (5,), (1, 2, 3)])
def test_tokens_of_another_shape_and_empty_texts_are_refused(shape: tuple[int, ...]) -> None:
    message = r"tokens has shape .* it must be \(B, T\) with at least one token"
    with unchecked(), pytest.raises(ValueError, match=message):
        decoder()(torch.zeros(shape, dtype=torch.int64))


def test_a_state_of_other_rows_is_refused() -> None:
    """T8: two rows and five beams must not broadcast or mix."""
    model = decoder()
    _, state = model(tokens(2, 3))
    message = r"tokens has 5 rows and the state 2; they must be equal: select_rows"
    with pytest.raises(ValueError, match=message):
        model(tokens(5, 1), state)


@pytest.mark.parametrize("name", ["valid", "starts"])
def test_a_mask_of_another_shape_is_refused(name: str) -> None:
    mask = torch.ones(2, 4, dtype=torch.bool)
    message = rf"{name} has shape \(2, 4\); it must be \(B, T\) = \(2, 3\), one flag"
    with unchecked(), pytest.raises(ValueError, match=message):
        decoder()(tokens(2, 3), **{name: mask})


def test_a_vocabulary_that_was_not_filled_in_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vocab_size \(0\) must be at least 1; take the token"):
        Decoder(config(vocab_size=0))


@pytest.mark.parametrize("token", [-1, 31, 1000])
def test_a_token_outside_the_vocabulary_is_an_error(token: int) -> None:
    with pytest.raises((ValueError, IndexError)):
        decoder()(torch.tensor([[1, token]]))
