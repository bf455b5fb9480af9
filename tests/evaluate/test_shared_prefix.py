import random
from dataclasses import replace

import pytest
import torch

from retnet.evaluate import shared_prefix
from retnet.evaluate.shared_prefix import Likelihood, Request, score_requests
from retnet.model import Decoder, preset, rival

BASE = preset("small-1m", vocab_size=50)
ONE = replace(BASE, layers=(replace(BASE.layers[0], repeat=1),))


@torch.inference_mode()
def alone(model: Decoder, request: Request) -> Likelihood:
    """Each text by itself, all at once."""
    logits, _ = model(torch.tensor([request.tokens[:-1]]), form="auto")
    targets = torch.tensor(request.tokens[-request.scored :])
    tail = logits[0, -request.scored :].log_softmax(-1)
    log_probability = tail.gather(1, targets[:, None]).sum().item()
    return Likelihood(log_probability, bool((tail.argmax(-1) == targets).all()))


def requests_like_few_shot() -> list[Request]:
    """Two heads that many share, questions of which some share choices, and odd ones."""
    chance = random.Random(0)

    def text(length: int) -> list[int]:
        return [chance.randrange(1, 50) for _ in range(length)]

    heads = [[0, *text(40)], [0]]
    heads.append(heads[0] + text(30))
    requests = []
    for group in range(24):
        question = heads[group % 3] + text(chance.randint(1, 9))
        for _ in range(chance.randint(1, 3)):
            answer = text(chance.randint(1, 5))
            requests.append(Request(question + answer, len(answer), group))
    for group in range(24, 27):  # as in partial scoring: the ends are equal, not what precedes
        before, after = heads[2] + text(5), text(6)
        requests += [Request(before + text(n) + after, 6, group) for n in (1, 3)]
    chance.shuffle(requests)
    return requests


@pytest.mark.parametrize(
    ("mixer", "batch_size", "call_tokens"),
    [("retention", 64, 4096), ("retention", 3, 4096), ("attention", 64, 32)],
)
def test_every_request_gets_what_it_gets_alone(
    monkeypatch: pytest.MonkeyPatch, mixer: str, batch_size: int, call_tokens: int
) -> None:
    monkeypatch.setattr(shared_prefix, "CALL_TOKENS", call_tokens)
    model = Decoder(ONE if mixer == "retention" else rival(ONE, mixer)).double().eval()
    requests = requests_like_few_shot()
    got = score_requests(model, requests, batch_size=batch_size)
    for found, request in zip(got, requests, strict=True):
        expected = alone(model, request)
        assert abs(found.log_probability - expected.log_probability) < 1e-5
        assert found.greedy == expected.greedy


def test_a_shared_beginning_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Decoder(ONE).eval()
    head = [0, *range(1, 41)]
    requests = [
        Request([*head, question, 7, 8, choice], 1, question)
        for question in range(10, 20)
        for choice in (1, 2, 3)
    ]
    read = 0
    hidden = model.hidden

    def counted(tokens: torch.Tensor, *rest, **named):
        nonlocal read
        read += tokens.numel()
        return hidden(tokens, *rest, **named)

    monkeypatch.setattr(model, "hidden", counted)
    score_requests(model, requests)
    assert read == len(head) + 10 * 2 + 30  # the last token of a question is read for each choice


def test_the_likeliest_continuation_is_greedy_and_progress_is_told() -> None:
    model = Decoder(ONE).eval()
    with torch.inference_mode():
        likeliest = int(model(torch.tensor([[0, 5, 9]]))[0][0, -1].argmax())
    told: list[tuple[int, int]] = []
    requests = [Request([0, 5, 9, token], 1, None) for token in (likeliest, (likeliest + 1) % 50)]
    got = score_requests(model, requests, progress=lambda done, total: told.append((done, total)))
    assert [found.greedy for found in got] == [True, False]
    assert got[0].log_probability > got[1].log_probability
    assert told[-1] == (2, 2)
    assert score_requests(model, []) == []


@pytest.mark.parametrize("scored", [0, 3])
def test_nothing_to_score_or_to_begin_with_is_refused(scored: int) -> None:
    with pytest.raises(ValueError, match=f"request 0 scores {scored} of 3 tokens"):
        score_requests(Decoder(ONE), [Request([0, 1, 2], scored, None)])
