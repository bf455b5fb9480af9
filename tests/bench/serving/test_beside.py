import pytest

from retnet.bench.peers.roles import Written
from retnet.bench.serving.beside import _rate, _whole_rate


def test_rates_are_of_texts_that_are_all_written() -> None:
    written = Written([[1, 1, 1], [1, 1, 1]], [[1.0, 3.0, 4.0], [2.0, 3.0, 6.0]])
    assert _rate(written) == pytest.approx(3 / 2)
    assert _whole_rate(written) == 1.0


def test_texts_that_never_go_together_have_no_rate() -> None:
    with pytest.raises(AssertionError, match="more must be written"):
        _rate(Written([[1, 1], [1, 1]], [[1.0, 2.0], [3.0, 4.0]]))
