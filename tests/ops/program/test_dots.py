"""Products of whole numbers are exact, by whichever instruction a processor makes them."""

from typing import Any

import numpy as np
import pytest

from retnet.ops.program.table import LANES_OF_INT8, ROWS

pytest.importorskip("numba", reason="pip install 'retnet[fast]' brings it")
import numba

from retnet.ops.program import dots


def _products(weights: Any, x: Any) -> Any:
    """(vectors, rows), by a function that is compiled anew."""
    vectors, K = x.shape
    rows = len(weights)
    of_tile = dots.dots_of("int8", rows, vectors)

    @numba.njit
    def compiled(w: int, x: int, out: int) -> None:
        of_tile(w, x, out, K, K, rows)

    tile = np.zeros((ROWS, K), np.int8)
    tile[:rows] = weights
    tile = tile.reshape(ROWS, -1, LANES_OF_INT8).transpose(1, 0, 2).copy()
    out = np.zeros((vectors, rows), np.float32)
    compiled(tile.ctypes.data, x.ctypes.data, out.ctypes.data)
    return out


@pytest.mark.parametrize("pieces", range(len(dots.PAIRS) + 1))
@pytest.mark.parametrize(("rows", "vectors"), [(4, 1), (2, 8)])
def test_every_way_to_multiply_is_exact(
    pieces: int, rows: int, vectors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that this processor has, and what needs nothing of it."""
    monkeypatch.setattr(dots, "PAIRS", dots.PAIRS[pieces:])
    rng = np.random.default_rng(pieces)
    weights = rng.integers(-127, 128, (rows, 96), np.int8)
    x = rng.integers(-900, 901, (vectors, 96), np.int16)  # float32 holds the sums
    x[:, :2], weights[:, :2] = 900, 127
    want = x.astype(np.int64) @ weights.astype(np.int64).T
    assert (_products(weights, x) == want).all()
