"""The n-gram model against the textbook, written out with dictionaries."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from retnet.evaluate import NGram

TEXT = b"she sells sea shells by the sea shore; the shells she sells are sea shells, she says. " * 3
OTHER = b"the sea says: she sells shore shells by the zoo"


class Textbook:
    """Interpolated modified Kneser-Ney, Chen and Goodman 1998, one probability at a time."""

    def __init__(self, data: bytes, order: int) -> None:
        padded = bytes(order - 1) + data
        self.counts = {order: Counter(padded[i : i + order] for i in range(len(data)))}
        for n in range(order - 1, 0, -1):
            self.counts[n] = Counter(gram[1:] for gram in self.counts[n + 1])
        self.order = order

    def discount(self, n: int, count: int) -> float:
        if count == 0:
            return 0.0
        of = Counter(self.counts[n].values())
        if not all(of[i] for i in (1, 2, 3, 4)):
            return 0.5
        y = Fraction(of[1], of[1] + 2 * of[2])
        k = min(count, 3)
        value = float(k - (k + 1) * y * Fraction(of[k + 1], of[k]))
        return min(max(value, 0.05), k - 0.05)

    def probability(self, context: bytes, byte: int, n: int) -> float:
        if n == 0:
            return 1 / 256
        context = context[len(context) - (n - 1) :]
        lower = self.probability(context, byte, n - 1)
        followers = {g: c for g, c in self.counts[n].items() if g[:-1] == context}
        if not followers:
            return lower
        total = sum(followers.values())
        count = followers.get(context + bytes([byte]), 0)
        spared = sum(self.discount(n, c) for c in followers.values())
        return (count - self.discount(n, count) + spared * lower) / total

    def probabilities(self, data: bytes) -> list[float]:
        padded = bytes(self.order - 1) + data
        return [
            self.probability(padded[i : i + self.order - 1], padded[i + self.order - 1], self.order)
            for i in range(len(data))
        ]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_every_probability_is_the_textbooks(order: int) -> None:
    expected = Textbook(TEXT, order).probabilities(OTHER)
    got = NGram(TEXT, order).probabilities(OTHER)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_probabilities_after_any_context_sum_to_one() -> None:
    model = NGram(TEXT, 4)
    for context in (b"", b"s", b"she", b"zzz", b" sea"):
        total = sum(model.probabilities(context + bytes([byte]))[-1] for byte in range(256))
        assert math.isclose(total, 1, rel_tol=1e-12)


def test_bits_are_those_of_an_ideal_coder() -> None:
    model = NGram(TEXT)
    assert math.isclose(model.bits(OTHER), -sum(math.log2(p) for p in model.probabilities(OTHER)))


def test_text_like_what_was_learned_costs_less_than_other_text() -> None:
    model = NGram(TEXT)
    assert model.bits(b"she sells sea shells") < model.bits(b"he bought a fishing")


def test_bytes_never_seen_are_possible() -> None:
    assert NGram(b"a" * 50).probabilities(b"\xff\x00").min() > 0


def test_no_text_costs_nothing() -> None:
    assert NGram(TEXT).bits(b"") == 0


@pytest.mark.parametrize("order", [0, 9])
def test_order_that_does_not_fit_into_eight_bytes_is_refused(order: int) -> None:
    with pytest.raises(ValueError, match=rf"order \({order}\) must be from 1 to 8"):
        NGram(TEXT, order)


def test_empty_data_is_refused() -> None:
    with pytest.raises(ValueError, match="data is empty"):
        NGram(b"")
