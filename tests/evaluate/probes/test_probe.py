import math
from dataclasses import replace

import pytest
import torch

from retnet.evaluate.probes import (
    IGNORED,
    PROBES,
    answers_of,
    cycle_navigation,
    needle,
    parity,
    score_answers,
    score_probe,
)
from retnet.model import Decoder, preset
from retnet.model.scoring import score


def test_right_places_and_right_rows_are_counted() -> None:
    targets = torch.tensor([[IGNORED, 1, 2], [3, 4, 5], [IGNORED] * 3, [6, IGNORED, IGNORED]])
    answers = torch.tensor([[9, 1, 2], [3, 0, 5], [1, 1, 1], [0, 0, 0]])
    got = score_answers(answers, targets)
    assert (got.right, got.asked, got.rows_right, got.rows) == (4, 6, 1, 3)
    assert got.accuracy == 4 / 6
    assert got.exact == 1 / 3
    shares = torch.tensor([1, 2 / 3, 0], dtype=torch.float64)
    assert math.isclose(got.standard_error, math.sqrt(shares.var(correction=0).item() / 3))


def test_nothing_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is asked"):
        score_answers(torch.zeros(1, 2, dtype=torch.int64), torch.full((1, 2), IGNORED))


def test_answers_are_the_likeliest_tokens_where_asked() -> None:
    model = Decoder(preset("small-1m", vocab_size=64)).eval()
    examples = PROBES["repeated"].make(2, 10, torch.Generator().manual_seed(0))
    answers = answers_of(model, examples.tokens, examples.mask)
    logits, _ = model(examples.tokens)
    assert torch.equal(answers[examples.mask], logits.argmax(-1)[examples.mask])
    assert (answers[~examples.mask] == -1).all()


def test_a_model_is_scored_on_the_examples_that_the_seed_says() -> None:
    model = Decoder(preset("small-1m", vocab_size=64)).eval()
    probe = needle(depth=0.0)
    got = score_probe(model, probe, length=12, batch_size=4, batches=2, seed=3)
    assert got.rows == got.asked == 8
    assert got == score_probe(model, probe, length=12, batch_size=4, batches=2, seed=3)
    generator = torch.Generator().manual_seed(3)
    right = 0
    for _ in range(2):
        examples = probe.make(4, 12, generator)
        logits, _ = model(examples.tokens)
        right += int((logits.argmax(-1)[:, -1] == examples.targets[:, -1]).sum())
    assert got.right == right


def test_a_vocabulary_too_small_and_empty_batches_are_refused() -> None:
    model = Decoder(preset("small-1m", vocab_size=10)).eval()
    with pytest.raises(ValueError, match=r"vocab_size \(10\) is below that of the probe needle"):
        score_probe(model, needle(), length=9)
    with pytest.raises(ValueError, match=r"batches \(0\) and batch_size \(32\) must be at least 1"):
        score_probe(model, parity(), length=9, batches=0)


def test_a_small_model_learns_a_probe_by_the_loss_of_its_targets() -> None:
    probe = cycle_navigation()
    base = preset("small-1m", vocab_size=probe.vocab_size)
    model = Decoder(replace(base, layers=(replace(base.layers[0], repeat=1),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        examples = probe.make(16, 2, generator)
        got = score(model, examples.tokens, examples.targets)
        optimizer.zero_grad()
        (got.nats / got.num_tokens).backward()
        optimizer.step()
    assert score_probe(model.eval(), probe, length=2).accuracy == 1
