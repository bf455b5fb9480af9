from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from retnet.data import Tokenizer, TokenStream
from retnet.evaluate.probes.familiar import kinds, score_familiar
from retnet.evaluate.probes.in_text import passages
from retnet.model import Decoder, preset

BASE = preset("small-1m", vocab_size=257)
MODEL = Decoder(replace(BASE, layers=(replace(BASE.layers[0], repeat=1),))).eval()
STREAM = TokenStream.from_texts(["abcabdacbd" * 3, "b" * 20], Tokenizer.bytes())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_each_token_has_the_kind_that_a_look_at_all_before_it_gives(row: list[int]) -> None:
    found = kinds(torch.tensor([row]), bos_id=4)
    pairs = [*zip([4, *row], row, strict=False)]
    for place, token in enumerate(row):
        kind = "new"
        if token in row[:place]:
            kind = "pair" if pairs[place] in pairs[:place] else "seen"
        assert [name for name, mask in found.items() if mask[0, place]] == [kind]


@torch.inference_mode()
def test_scores_are_means_of_the_losses_of_each_kind() -> None:
    scores = score_familiar(MODEL, STREAM, length=10)
    rows = passages(STREAM, 10, 64)
    bos = torch.full((len(rows), 1), STREAM.bos_id)
    logits, _ = MODEL(torch.cat([bos, rows[:, :-1]], 1))
    nats = F.cross_entropy(logits.mT, rows, reduction="none")
    assert [score.kind for score in scores] == ["new", "seen", "pair"]
    assert sum(score.share for score in scores) == pytest.approx(1)
    for score, mask in zip(scores, kinds(rows, STREAM.bos_id).values(), strict=True):
        assert score.nats == pytest.approx(nats[mask].mean().item(), rel=1e-5)
        assert score.share == mask.double().mean().item()
        assert score.samples == 5


def test_passages_alike_leave_no_error_and_kinds_without_tokens_are_left_out() -> None:
    stream = TokenStream.from_texts(["b" * 20], Tokenizer.bytes())
    new, seen, pair = score_familiar(MODEL, stream, length=5)
    assert (new.share, seen.share, pair.share) == pytest.approx((0.2, 0.2, 0.6))
    assert all(score.standard_error < 1e-6 for score in (new, seen, pair))
    alone = TokenStream.from_texts(["bc"], Tokenizer.bytes())
    assert [score.kind for score in score_familiar(MODEL, alone, length=1)] == ["new"]
