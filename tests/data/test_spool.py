import pytest

from retnet.data.spool import Spool

TEXTS = ["one", "", "zw\u00f6lf\n", "\0" * 1000]


def test_spool_reads_its_source_once(tmp_path):
    spool = Spool(iter(TEXTS), tmp_path / "spool")
    assert [list(spool) for _ in range(3)] == [TEXTS] * 3


def test_first_reading_that_breaks_off_is_not_taken_for_the_whole(tmp_path):
    spool = Spool(TEXTS, tmp_path / "spool")
    assert next(iter(spool)) == "one"
    assert list(spool) == list(spool) == TEXTS


def test_error_of_the_source_comes_through(tmp_path):
    def broken():
        yield "one"
        raise ValueError("the network failed")

    with pytest.raises(ValueError, match="network"):
        list(Spool(broken(), tmp_path / "spool"))
