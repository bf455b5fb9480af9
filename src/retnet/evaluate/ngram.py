"""A byte n-gram model: the strongest language model that needs no gradient and a second of time."""

from typing import NamedTuple

import numpy as np


class _Table(NamedTuple):
    """The n-grams of one order, sorted, so that those of one context stand side by side.

    Attributes:
        grams: (grams,) uint64, n bytes each, the last one lowest.
        counts: (grams,) int64, see `NGram`.
        contexts: (contexts,) uint64, the first n - 1 bytes.
        totals: (contexts,) float64, sum of counts.
        spared: (contexts,) float64, sum of discounts: what is left for the lower order.
        discounts: (4,) float64, subtracted from a count of 0, 1, 2, and 3 or more.
    """

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    spared: np.ndarray
    discounts: np.ndarray


class NGram:
    """An n-gram model of bytes, with interpolated modified Kneser-Ney smoothing.

    The highest order counts occurrences; every lower order counts the distinct bytes that stand
    before an n-gram, and below them all lies the uniform distribution. A context never seen leaves
    the prediction to the order below.

    Source:
        Chen and Goodman 1998, "An empirical study of smoothing techniques for language modeling",
        Harvard TR-10-98, section 3.

    Example:
        >>> model = NGram(b"the cat sat on the mat. " * 40)
        >>> model.bits(b"the cat") < model.bits(b"tac eht")
        True
    """

    def __init__(self, data: bytes, order: int = 5) -> None:
        """Count.

        Args:
            data: what to learn from, not empty. Memory peaks at about 40 bytes for each byte.
            order: n, so that n - 1 bytes predict the next.

        Raises:
            ValueError: order is not from 1 to 8, or data is empty.
        """
        if not 1 <= order <= 8:
            raise ValueError(f"order ({order}) must be from 1 to 8: an n-gram is kept in 8 bytes")
        if not data:
            raise ValueError("data is empty; an n-gram model needs text to count")
        grams, counts = np.unique(_grams(data, order), return_counts=True)
        tables = [_table(grams, counts)]
        for n in range(order - 1, 0, -1):
            grams, counts = np.unique(grams & np.uint64(256**n - 1), return_counts=True)
            tables.append(_table(grams, counts))
        self._tables = tables[::-1]  # from order 1 upwards

    def probabilities(self, data: bytes) -> np.ndarray:
        """Return the probability of each byte of `data`, given those before it: (bytes,) float64.

        Zero bytes stand before the first.
        """
        p = np.full(len(data), 1 / 256)
        for n, table in enumerate(self._tables, 1):
            grams = _grams(data, n)
            context, known = _find(table.contexts, grams >> np.uint64(8))
            gram, seen = _find(table.grams, grams)
            counts = np.where(seen, table.counts[gram], 0)
            discounted = counts - table.discounts[np.minimum(counts, 3)]
            finer = (discounted + table.spared[context] * p) / table.totals[context]
            p = np.where(known, finer, p)
        return p

    def bits(self, data: bytes) -> float:
        """Return the bits that an ideal coder needs for `data`."""
        return float(-np.log2(self.probabilities(data)).sum())


def _grams(data: bytes, n: int) -> np.ndarray:
    """For every byte, it and the n - 1 before it, as one number: (bytes,) uint64."""
    padded = np.frombuffer(bytes(n - 1) + data, dtype=np.uint8)
    grams = np.zeros(len(data), dtype=np.uint64)
    for i in range(n):
        grams = (grams << np.uint64(8)) | padded[i : i + len(data)].astype(np.uint64)
    return grams


def _table(grams: np.ndarray, counts: np.ndarray) -> _Table:
    contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
    discounts = _discounts(counts)
    return _Table(
        grams=grams,
        counts=counts,
        contexts=contexts,
        totals=np.add.reduceat(counts, first).astype(np.float64),
        spared=np.add.reduceat(discounts[np.minimum(counts, 3)], first),
        discounts=discounts,
    )


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Subtract on average what a count of 1, 2, or 3 and more loses on new text."""
    one, two, three, four = (float((counts == n).sum()) for n in (1, 2, 3, 4))
    if min(one, two, three, four) == 0:
        return np.array([0, 0.5, 0.5, 0.5])  # too few n-grams to tell, as at order 1
    y = one / (one + 2 * two)
    estimates = [1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three]
    # Small samples give estimates outside this range: a probability of zero, or below.
    return np.array([0, *np.clip(estimates, 0.05, [0.95, 1.95, 2.95])])


def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each key stands in a sorted table, and whether it does (else any place)."""
    places = np.searchsorted(table, keys)
    places[places == len(table)] = 0
    return places, table[places] == keys
