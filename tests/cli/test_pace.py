import itertools

import pytest

from retnet.cli import pace
from retnet.cli.pace import Pace
from retnet.model import Decoder, preset


@pytest.fixture
def model() -> Decoder:
    return Decoder(preset("small-1m", vocab_size=16)).eval()


def test_rate_is_that_of_the_tokens_after_the_first(
    model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(100.0, 2.0)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(clock))
    watch = Pace()
    watch.begin()
    watch.begin()
    watch.end()
    # two texts: 20 tokens after the first of each, 15 steps, 2 seconds
    assert watch.report(model, [16, 6]) == (
        "22 tokens, 10 tokens/s, 133.33 ms per token, state 262 kB at any length"
    )


def test_a_text_without_pieces_has_no_rate(model: Decoder) -> None:
    watch = Pace()
    watch.end()
    assert watch.report(model, [5]) == "5 tokens, state 262 kB at any length"
