import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retnet.data.order import epoch_phase, permute

SEEDS = st.integers(-(2**63), 2**63)


@given(st.integers(1, 3000), SEEDS, st.integers(0, 10**6))
def test_order_visits_every_window_once(size, seed, epoch):
    order = permute(np.arange(size), size, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(order), np.arange(size))


@given(st.integers(1, 2**40), st.data())
def test_place_in_the_order_does_not_depend_on_what_is_asked_beside_it(size, data):
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9)))
    together = permute(index, size, seed=1, epoch=2)
    alone = [permute(index[i : i + 1], size, seed=1, epoch=2)[0] for i in range(len(index))]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < size)).all()


def test_order_changes_with_seed_and_epoch():
    orders = [
        permute(np.arange(100), 100, seed=seed, epoch=epoch).tolist()
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len({tuple(order) for order in orders}) == 9


def test_order_is_the_same_on_every_machine():
    """A run resumes exactly only while these numbers stay; changing them needs a new version."""
    assert permute(np.arange(10), 10, seed=0, epoch=0).tolist() == [4, 2, 5, 0, 8, 6, 7, 1, 3, 9]
    assert epoch_phase(10**6, seed=0, epoch=0) == 845_685


def test_every_window_is_equally_likely_in_every_place():
    for size in (2, 3, 7):
        runs = 500
        counts = np.zeros((size, size))
        for seed in range(runs):
            counts[np.arange(size), permute(np.arange(size), size, seed=seed, epoch=0)] += 1
        expected = runs / size
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        freedom = (size - 1) ** 2
        assert chi_squared < freedom + 5 * np.sqrt(2 * freedom)


def test_neighbours_in_the_order_are_not_neighbours_in_the_text():
    size = 5000
    steps = np.diff(permute(np.arange(size), size, seed=7, epoch=0))
    assert np.mean(np.abs(steps)) > 0.3 * size  # a random order has a third
    assert np.sum(np.abs(steps) == 1) < 10  # a random order has two


@given(st.integers(1, 10**9), SEEDS, st.integers(0, 100))
def test_phase_lies_in_the_stream(size, seed, epoch):
    assert 0 <= epoch_phase(size, seed=seed, epoch=epoch) < size
