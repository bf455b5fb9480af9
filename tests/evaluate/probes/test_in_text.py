from dataclasses import replace

import pytest
import torch

from retnet.data import Tokenizer, TokenStream
from retnet.evaluate.probes.in_text import passages, score_needles, score_repeats
from retnet.model import Decoder, DecoderState, preset

BASE = preset("small-1m", vocab_size=257)
MODEL = Decoder(replace(BASE, layers=(replace(BASE.layers[0], repeat=1),))).eval()
TEXTS = ["".join(chr(97 + (5 * i * i + i // 7) % 26) for i in range(60)), "short", "b" * 41]


@pytest.fixture
def stream() -> TokenStream:
    return TokenStream.from_texts(TEXTS, Tokenizer.bytes())


class Copier(Decoder):
    """Says that the token which came `period` places before the next comes again."""

    period = 0

    def hidden(self, tokens, state=None, **_):  # type: ignore[override]
        seen = torch.cat([torch.zeros(len(tokens), self.period, dtype=torch.int64), tokens], 1)
        return seen[:, 1 : tokens.shape[1] + 1, None].float(), state or DecoderState(
            tokens[:, 0], ()
        )

    def head(self, h):  # type: ignore[override]
        return torch.nn.functional.one_hot(h[..., 0].long(), 257).float()


def test_passages_lie_in_one_document_each_and_do_not_overlap(stream: TokenStream) -> None:
    rows = passages(stream, 20, most=9)
    texts = [bytes(row).decode() for row in rows.tolist()]
    assert texts == [TEXTS[0][n : n + 20] for n in (0, 20, 40)] + ["b" * 20] * 2
    assert len(passages(stream, 20, most=2)) == 2
    with pytest.raises(ValueError, match="has 1 passages of 50 tokens of one document"):
        passages(stream, 50, most=2)


def test_who_looks_up_what_came_before_knows_a_passage_again(stream: TokenStream) -> None:
    model = Copier(MODEL.config).eval()
    model.period = 10
    score = score_repeats(model, stream, length=20)
    assert score.again.mean == 1
    assert score.first.mean < 0.5
    assert score.plain.mean < 0.5
    assert score.samples == 5
    with pytest.raises(ValueError, match=r"length \(3\) must be at least 4"):
        score_repeats(model, stream, length=3)


def test_needles_are_asked_for_at_every_depth(stream: TokenStream) -> None:
    scores = score_needles(MODEL, Tokenizer.bytes(), stream, length=20, depths=(0.0, 1.0))
    assert [(s.depth, s.distance, s.samples) for s in scores] == [(0.0, 20, 5), (1.0, 0, 5)]
    assert all(0 <= s.right.mean <= 1 for s in scores)
    again = score_needles(MODEL, Tokenizer.bytes(), stream, length=20, depths=(1.0,))
    assert again == scores[1:]
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        score_needles(MODEL, Tokenizer.bytes(), stream, length=20, depths=(1.5,))


def test_the_gain_is_that_of_the_number_told(stream: TokenStream) -> None:
    """Against each text read whole, without a shared state."""
    tokenizer = Tokenizer.bytes()
    [score] = score_needles(
        MODEL, tokenizer, stream, length=20, depths=(0.5,), most_samples=2, seed=3
    )
    generator = torch.Generator().manual_seed(3)
    gains = []
    for passage in passages(stream, 20, most=2).tolist():
        number = (torch.randperm(90000, generator=generator)[:10] + 10000)[0].item()
        answer = list(f" {number}.".encode())
        needle = list(f" The secret number is {number}. ".encode())
        values = []
        for text in ([*passage[:10], *needle, *passage[10:]], passage):
            tokens = torch.tensor([[256, *text, *b" The secret number is", *answer]])
            with torch.inference_mode():
                logits = MODEL(tokens)[0][0, -len(answer) - 1 : -1].log_softmax(-1)
            values.append(logits.gather(1, torch.tensor(answer)[:, None]).sum().item())
        gains.append(values[0] - values[1])
    assert score.gain.mean == pytest.approx(sum(gains) / 2, abs=1e-4)
