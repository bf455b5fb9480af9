import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from retnet.data import Tokenizer, TokenStream
from retnet.evaluate.context import score_contexts, verdict_of
from retnet.evaluate.losses import Interval
from retnet.model import Decoder, preset, rival

BASE = preset("small-1m", vocab_size=257)
ONE = replace(BASE, layers=(replace(BASE.layers[0], repeat=1),))
TEXTS = ["".join(chr(97 + (7 * i * i + n) % 26) for i in range(100)) for n in range(3)]


def stream() -> TokenStream:
    return TokenStream.from_texts([*TEXTS, "too short"], Tokenizer.bytes())


def test_the_same_last_tokens_are_scored_after_each_context() -> None:
    model = Decoder(ONE)
    got = score_contexts(model, stream(), contexts=(8, 16, 32), segment=4)
    assert model.training
    assert got.samples == 9  # three in each document of 101 tokens
    model.eval()
    for context, nats in zip(got.contexts, got.nats, strict=True):
        losses = []
        for text in TEXTS:
            tokens = [256, *text.encode()]
            for begin in (0, 32, 64):
                run = tokens[begin : begin + 33]
                inputs = [256, *run[-context:-1]]
                with torch.inference_mode():
                    logits, _ = model(torch.tensor([inputs]))
                losses.append(F.cross_entropy(logits[0, -4:], torch.tensor(run[-4:])).item())
        assert math.isclose(nats, sum(losses) / 9, rel_tol=1e-5)
    assert got.gains[0] == Interval(0.0, 0.0, 0.0)
    assert math.isclose(got.gains[2].mean, got.nats[2] - got.nats[0], abs_tol=1e-6)
    best = min(got.nats[:-1])
    assert math.isclose(got.after_best.mean, got.nats[2] - best, abs_tol=1e-6)


def test_a_window_is_flat() -> None:
    config = rival(ONE, "attention", num_heads=2, window=4, position="none")
    got = score_contexts(Decoder(config), stream(), contexts=(16, 32, 64), segment=4)
    assert got.verdict == "flat"
    assert max(abs(gain.mean) for gain in got.gains) < 1e-5


def test_verdicts_need_an_interval_and_a_size() -> None:
    worse, same = Interval(0.2, 0.1, 0.3), Interval(0.0, -0.1, 0.1)
    better, tiny = Interval(-0.2, -0.3, -0.1), Interval(-0.001, -0.0011, -0.0009)
    assert verdict_of(worse, worse) == "breaks"
    assert verdict_of(better, worse) == "breaks"
    assert verdict_of(better, same) == "improves"
    assert verdict_of(same, same) == "flat"
    assert verdict_of(tiny, tiny) == "flat"
    assert verdict_of(tiny, Interval(0.001, 0.0009, 0.0011)) == "flat"


def test_progress_ends_with_all_tokens() -> None:
    told: list[tuple[int, int]] = []
    score_contexts(
        Decoder(ONE), stream(), contexts=(8, 16), segment=4, most_samples=3,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told[0] == (0, 72)
    assert told[-1] == (72, 72)


def test_contexts_that_cannot_be_are_refused() -> None:
    model = Decoder(ONE)
    with pytest.raises(ValueError, match=r"contexts \(\(8, 8\)\) must be two or more that rise"):
        score_contexts(model, stream(), contexts=(8, 8), segment=4)
    with pytest.raises(ValueError, match=r"segment \(8\) must be from 1 to 7"):
        score_contexts(model, stream(), contexts=(8, 16), segment=8)
    with pytest.raises(ValueError, match="the text has 0 samples of 129 tokens"):
        score_contexts(model, stream(), contexts=(8, 128), segment=4)
    limited = Decoder(rival(ONE, "hyena", l_max=16))
    with pytest.raises(ValueError, match=r"more than the model can read \(16 tokens\)"):
        score_contexts(limited, stream(), contexts=(8, 32), segment=4)
