"""Scores: sums of negative log-likelihood, over the targets that count."""

import math
from itertools import pairwise

import pytest
import torch

from model.small import V, close, config, decoder, same_states, tokens
from retnet.model.scoring import score, total_nats


def by_hand(logits: torch.Tensor, targets: torch.Tensor) -> float:
    total = 0.0
    for b in range(targets.shape[0]):
        for t in range(targets.shape[1]):
            if targets[b, t] != -100:
                row = logits[b, t].double()
                total += math.log(row.exp().sum().item()) - row[targets[b, t]].item()
    return total


def test_score_is_the_sum_over_the_targets_that_count() -> None:
    model, text = decoder(), tokens(3, 12)
    targets = text.roll(-1, 1)
    targets[0, 3:7] = targets[2] = -100
    with torch.no_grad():
        got = score(model, text, targets)
        logits, state = model(text)
    assert got.num_tokens == 3 * 12 - 4 - 12
    assert got.nats.item() == pytest.approx(by_hand(logits, targets), rel=1e-6)
    same_states(got.state, state)


def test_no_target_that_counts_gives_zero() -> None:
    text = tokens(2, 4)
    got = score(decoder(), text, torch.full_like(text, -100))
    assert got.num_tokens == 0
    assert got.nats == 0


def test_score_is_float32_or_better_in_half_precision() -> None:
    model, text = decoder(dtype=torch.bfloat16), tokens(2, 30)
    got = score(model, text, text)
    assert got.nats.dtype == torch.float32
    exact = score(decoder(dtype=torch.float32), text, text)
    assert got.nats.item() == pytest.approx(exact.nats.item(), rel=0.02)


def test_score_has_the_gradient_of_the_loss() -> None:
    model, text = decoder(), tokens(2, 9)
    score(model, text[:, :-1], text[:, 1:]).nats.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_segments_with_a_carried_state_score_as_one_text() -> None:
    model, text = decoder(), tokens(2, 41)
    inputs, targets = text[:, :-1], text[:, 1:]
    starts = torch.zeros(2, 40, dtype=torch.bool)
    starts[0, 0] = starts[1, 13] = starts[0, 20] = True
    with torch.no_grad():
        whole = score(model, inputs, targets, starts=starts)
    cuts = [0, 1, 10, 20, 39, 40]
    batches = [(inputs[:, a:b], targets[:, a:b], starts[:, a:b]) for a, b in pairwise(cuts)]
    nats, count = total_nats(model, batches, carry_state=True)
    assert count == whole.num_tokens == 80
    assert nats == pytest.approx(whole.nats.item(), rel=1e-5)
    apart, _ = total_nats(model, batches, carry_state=False)
    assert apart != pytest.approx(nats, rel=1e-4)


def test_totals_are_scored_in_evaluation_mode_which_is_restored() -> None:
    text = tokens(2, 9)
    batch = (text, text, torch.zeros(2, 9, dtype=torch.bool))
    model = decoder(config(dropout=0.5))
    want, _ = total_nats(model, [batch], carry_state=False)
    for mode in (True, False):
        model.train(mode)
        assert total_nats(model, [batch], carry_state=False)[0] == want
        assert model.training is mode

    def broken() -> object:
        yield batch
        raise KeyboardInterrupt

    model.train()
    with pytest.raises(KeyboardInterrupt):
        total_nats(model, broken(), carry_state=False)  # type: ignore[arg-type]
    assert model.training


def test_no_batches_give_nothing() -> None:
    assert total_nats(decoder(), [], carry_state=True) == (0.0, 0)


def test_a_uniform_model_scores_the_logarithm_of_the_vocabulary() -> None:
    model, text = decoder(), tokens(2, 10)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        close(score(model, text, text).nats.double(), torch.tensor(20 * math.log(V)).double(), 1e-6)
