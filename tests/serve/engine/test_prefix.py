import pytest
import torch

from retnet.model import DecoderState
from retnet.serve.engine.prefix import PrefixCache, borders


def state(number: int) -> DecoderState:
    """Eight bytes."""
    return DecoderState(torch.tensor([number]), ())


def test_borders_are_marks_and_a_grid_that_doubles() -> None:
    assert borders(200, []) == []
    assert borders(1025, [300, 300, 7]) == [7, 256, 300, 512, 1024]
    assert borders(256, [256]) == [], "one token is left to read"
    with pytest.raises(ValueError, match="mark 0 must be from 1"):
        borders(5, [0])


def test_the_longest_beginning_that_leaves_a_token_is_found() -> None:
    cache = PrefixCache(1000)
    for length in (2, 4, 6):
        cache.keep(range(length), state(length))
    assert cache.longest([0, 1, 2, 3, 4, 5]) == (4, state(4))
    assert cache.longest(range(99)) == (6, state(6))
    assert cache.longest([0, 1, 9, 9, 9, 9, 9]) == (2, state(2))
    assert cache.longest([9, 1, 2, 3]) == (0, None)
    assert cache.longest([0]) == (0, None)


def test_the_least_recently_used_is_forgotten_first() -> None:
    cache = PrefixCache(24)
    for length in (1, 2, 3):
        cache.keep(range(length), state(length))
    cache.longest([0, 9])
    cache.keep([7, 7], state(0))
    assert len(cache) == 3
    assert cache.num_bytes == 24
    assert cache.longest([0, 1, 9]) == (1, state(1)), "(0, 1) was the oldest"
    cache.keep([7, 7], state(5))
    assert cache.longest([7, 7, 7]) == (2, state(0)), "kept once"


def test_what_is_kept_is_a_copy_and_never_more_than_allowed() -> None:
    cache, mine = PrefixCache(8), state(1)
    cache.keep([1], mine)
    mine.position.zero_()
    assert cache.longest([1, 2]) == (1, state(1))
    none = PrefixCache(0)
    none.keep([1], state(1))
    assert none.longest([1, 2]) == (0, None)
